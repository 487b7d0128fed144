"""`runtape bench soak`: many programs, good and hostile, in one sandbox for long, and then what is left of them.

Knows the sandbox through `PodRuntime` and the machine through /proc.  The hostile programs are those of `prove`.
"""
