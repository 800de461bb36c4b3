"""Source files turned into TFDS data sets, one file a data set."""
