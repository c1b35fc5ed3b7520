"""The statistics of everything that is reported, each once (METHODS section 0). Of other packages: numpy and scipy."""
