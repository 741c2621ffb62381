"""Measures of a reenactment and the protocols that apply them."""
