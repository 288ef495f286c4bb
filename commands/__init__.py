"""What people do: train, apply, compare, and prune weights; in Python, and on the command line."""
