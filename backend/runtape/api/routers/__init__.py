"""The routes, by subject; the app mounts them under /api/v1.  Pydantic models live here and go no further in."""
