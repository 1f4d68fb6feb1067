"""What the network is run on: inputs read from files, or made up to fit the model. Knows inputs, not what is pruned."""
