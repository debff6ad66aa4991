"""Alerts of the embedded stack: told once, told when over, to sinks that do not wait for each other."""
