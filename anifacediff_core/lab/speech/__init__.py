"""Making and measuring the weights that read a voice: synthesized speech, what lips do with it, training."""
