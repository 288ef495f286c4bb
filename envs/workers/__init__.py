"""Candidates evaluated by several workers at a time."""
