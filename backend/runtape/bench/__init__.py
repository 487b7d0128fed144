"""`runtape bench`: how fast the service is on this machine, as ratios to a bare interpreter in the same run.

It measures from outside: it raises real server processes over temporary folders, sends real requests from a
client process, and reads CPU and memory from /proc.  Only `null_server` and `preload` look inside.
"""
