"""Motion as material: what can be done to face parameters over time."""
