"""The one place that chooses: settings, providers of each profile, roles, and the life of the process."""
