"""The costs of an experiment: on a slice, by the compiler; and measured on this machine."""
