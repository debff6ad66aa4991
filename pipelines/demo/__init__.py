"""`make demo`: the whole line, shown as it goes."""
