"""What happens next: one handler per command or event, against ports only.

A handler is a pure decision over documents with the reads it needs; it returns a `Step`: what to store and
publish, and what to do in the world once that is stored.  `flow.Flow` carries steps out.  Knows `domain` and
`ports`; never an adapter, HTTP or the process.
"""
