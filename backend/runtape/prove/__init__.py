"""`runtape prove`: hostile programs, run against the sandbox or the cluster of this very installation.

`cases/` is the battery, as data: what each program tries and what must hold.  `battery.py` runs it and judges; it knows
where programs run by the port alone, and looks at the rest from outside: in /proc (`traces.py`), or through the
cluster's API (`pods.py`).  `places.py` opens either.  `inside.py` goes in with each program.
"""
