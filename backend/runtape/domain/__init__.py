"""What is true of an execution: values, state machines and refusals.

Owns the words of the product as frozen dataclasses and pure functions ``decide(state, ...) -> events``,
``evolve(state, event) -> state``.  Knows no I/O, no clock, no randomness and no third-party package: time
and ids come in as values.
"""
