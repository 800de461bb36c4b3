"""Tasks that lm_eval lacks: a YAML file each, and the functions that it names."""
