"""Where examples come from: source files, prepared data sets, vocabularies and PAX inputs."""
