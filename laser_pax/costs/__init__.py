"""The costs of an experiment on a slice, by the compiler: memory, communication, operations."""
