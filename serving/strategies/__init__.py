"""How one version takes the place of another while the front holds: by a restart, or by reading other weights."""
