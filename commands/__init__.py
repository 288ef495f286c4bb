"""What people do: train, apply, compare, and look closer; in Python, and on the command line."""
