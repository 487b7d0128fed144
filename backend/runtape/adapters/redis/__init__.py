"""Redis in the cluster profile, which all processes share: allowances, the admission queue, keys seen, and nudges.

Nothing in it is the truth.  What a Redis loses costs delay and lets callers start with a full allowance; no run and no
byte is in it alone.
"""
