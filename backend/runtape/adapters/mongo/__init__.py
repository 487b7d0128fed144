"""Documents, blobs and tapes in MongoDB, for the cluster profile.

Every write changes one document, in one conditional step: no session, transaction or change stream is used, so any
deployment will do that can acknowledge a write once it is in the journal of a majority.
"""
