"""Profiles as lists of dishka providers: what stands behind each port, and the services over them."""
