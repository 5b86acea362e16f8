"""The command line: the only place that knows Hydra. Everything below takes typed keyword arguments."""
