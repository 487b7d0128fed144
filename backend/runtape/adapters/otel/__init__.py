"""Traces over the OpenTelemetry API; whether and where they go is up to an SDK, if one is installed and set up."""
