"""Layers as least squares sees them, statistics of what they read, and new weights for them."""
