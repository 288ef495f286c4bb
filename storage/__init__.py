"""What is on disk: never half written, never overwritten."""
