"""What makes and measures the weights, and the command line: the extension runs without it."""
