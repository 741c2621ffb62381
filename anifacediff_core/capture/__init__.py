"""Pixels or landmarks to face parameters: detection, tracking, an encoder of DECA's form, ARKit."""
