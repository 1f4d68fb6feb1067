"""Layers as least squares sees them, statistics of what they read, and new weights for them.

Knows layers, rows and weights, not why units went.
"""
