"""Builds the files that are shipped, and holds those that only the lab needs."""
