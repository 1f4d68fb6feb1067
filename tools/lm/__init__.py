"""A small language model to measure on: its text, network, training and the four forms that it is exported in."""
