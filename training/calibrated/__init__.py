"""Schemes that llm-compressor calibrates on training rows, in an environment of its own, and our check of its work."""
