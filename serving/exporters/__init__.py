"""A release as the manifest of a place that serves it. Pure: a release and a place in, a document out.

The engine's arguments are the same list in each; what differs is who starts it, restarts it and sends it requests.
"""
