"""Redis in the cluster profile: allowances and nudges that all processes share.

Nothing in it is the truth.  What a Redis loses costs delay and lets callers start with a full allowance; no run and no
byte is in it alone.
"""
