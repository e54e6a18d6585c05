"""The same questions asked of trained networks."""
