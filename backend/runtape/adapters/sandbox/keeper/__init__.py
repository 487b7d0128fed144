"""The keeper process and the boxes that it forks: the side of the sandbox that builds the walls.

Runs in its own interpreter (``python -I -S boot.py``), with the standard library alone: nothing here imports
`runtape`, so that no configuration, connection or secret of the service is ever in the memory from which a box
is forked.  The service imports `wire` from here, the one module that both sides share.
"""
