"""Many runs through a real server: whether anything grows that should not, and whether it becomes slower.

Owns the command `runtape bench endurance`.  Knows the server by its HTTP interface, its process and its database file.
"""
