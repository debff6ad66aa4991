"""What fits on the card, before anything is loaded: memory of training and of serving, by part, from a base's shape."""
