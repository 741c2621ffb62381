"""A motion from a voice alone: a small network for the lips, and gestures in its rhythm."""
