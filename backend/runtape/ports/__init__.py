"""What the application needs from the world, as small Protocols.

Each docstring states ordering, idempotency, ownership and errors, because two adapters must agree on them.
Knows `runtape.domain` alone.
"""
