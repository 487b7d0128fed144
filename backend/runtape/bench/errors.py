"""What ends a benchmark."""


class BenchError(Exception):
    """The measurement could not be made; the message says why and what helps."""


class WrongAnswer(BenchError):
    """The service answered something else than what was asked for."""
