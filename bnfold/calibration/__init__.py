"""Statistics of batch norms from data."""
