"""Who is who in an installation: its certificate authority, and what its processes show to Kubernetes.

For operators, from a checkout; no process of the product imports it.  ``python -m certs --help`` says what it does.
"""
