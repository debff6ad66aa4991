"""Data sets as people bring them, each turned into records of the one form that `training.chat` checks."""
