"""secateur learns how much of each layer of a neural network to prune."""
