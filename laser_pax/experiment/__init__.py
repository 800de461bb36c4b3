"""What experiments are made of: families, the slice, the layout, checks, job folders, the step."""
