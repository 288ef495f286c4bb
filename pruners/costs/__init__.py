"""What a network costs: FLOPs, parameters, latency."""
