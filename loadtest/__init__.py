"""Locust traffic and `farm bench`."""
