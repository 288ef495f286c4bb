"""Channel pruning: coupling groups, criteria, cutting."""
