"""Programs that turn source files into TFDS data sets, one module for each data set."""
