"""The parts of an experiment: families, slice, layout, checks, job folders, the train step."""
