"""Runtape runs other people's code safely and keeps the tape.

Imports point inward: ``runtime -> api | adapters -> application -> ports -> domain``; ``cli`` and
``bench`` stand above ``runtime``, and the CLI speaks HTTP only.
"""

__version__ = "0.1.0"
