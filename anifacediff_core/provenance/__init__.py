"""Saying that a video is synthetic: a mark in its pixels, words in its file, and a signed manifest."""
