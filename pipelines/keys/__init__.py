"""Who may ask what serves: named keys, their limits, and the verbs of `vlmops keys`."""
