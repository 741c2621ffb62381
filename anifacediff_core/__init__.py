"""AniFaceDiff: face reenactment by diffusion. The library; it knows nothing of ComfyUI."""

__version__ = "0.2.0"
