"""Ways to tell somebody, one a module."""
