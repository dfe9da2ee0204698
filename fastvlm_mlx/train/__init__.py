"""Training: a small model on drawn scenes, or any checkpoint on a user's conversations."""
