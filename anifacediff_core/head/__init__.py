"""Head parameters to surface normals: FLAME-format model, camera, alignment, rasterizer."""
