"""The three things people do: train, apply, compare; in Python, and on the command line."""
