"""Weights on disk: read, planned, changed and written as a stream."""
