"""The report a person reads: one HTML file per candidate that needs no network and no script, and its pictures."""
