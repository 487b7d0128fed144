"""The embedded profile: every port in one process over one SQLite file.

Owns the data folder's ``runtape.db``.  Knows nothing of HTTP or of how a program is run.
"""
