"""What training is, and in which order cutting and training follow each other."""
