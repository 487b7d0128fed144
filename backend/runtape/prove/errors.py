"""What keeps the battery from being run."""


class ProveError(Exception):
    """Nothing could be proven; the message says why and what helps."""
