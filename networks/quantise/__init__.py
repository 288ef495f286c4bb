"""Numbers of few bits, and how a network is trained with them."""
