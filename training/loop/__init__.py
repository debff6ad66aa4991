"""The training loop: steps, their history, checkpoints, what a person sees."""
