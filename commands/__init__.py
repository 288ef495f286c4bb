"""What people do: train, apply, compare, prune weights, look closer; in Python, and on the command line."""
