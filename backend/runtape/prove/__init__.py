"""`runtape prove`: hostile programs, run against the sandbox of this very installation.

`cases/` is the battery, as data: what each program tries and what must hold.  `battery.py` runs it and judges; it knows
the sandbox by its port alone and looks at the rest from outside, in /proc.  `inside.py` goes into the boxes.
"""
