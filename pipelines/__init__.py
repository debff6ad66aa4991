"""What a pipeline is: its configuration, its steps, what they hand on, and who may replace whom in service."""
