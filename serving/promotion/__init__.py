"""What a promotion is made of, its strategies apart: lock, log, hold, checks before, watch after."""
