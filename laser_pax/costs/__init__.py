"""What an experiment costs on a slice: memory, sending, operations, by the compiler."""
