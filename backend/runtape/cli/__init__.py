"""The command line.  Speaks HTTP to a server; only `up`, `doctor`, `config show`, `bench` and `prove` call inward.

Modules that a command does not need are imported inside it, because `runtape run` should cost little more
than the interpreter's own start.
"""
