"""What docker-compose.yml needs of the machine before it is started: `vlmops stack init`."""
