"""The source of examples: source files, prepared data sets, vocabularies and PAX inputs."""
