"""Helpers of the tests: a running ComfyUI and a browser that looks at it."""
