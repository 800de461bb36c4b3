"""What an experiment costs: parameters, tokens, FLOPs, memory."""
