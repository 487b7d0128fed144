"""HTTP: requests in, answers and streams out.

Owns paths, JSON shapes, status codes, credentials on the wire and problem details.  Knows `application`, `ports`
and `domain`; never an adapter or the settings, whose values it is handed.  `gate.Gate` stands in front of every
route, `problems` forms every refusal.
"""
