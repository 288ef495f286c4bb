"""Least squares and batch-norm statistics: what is left after the cut, made to fit again."""
