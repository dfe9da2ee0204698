"""Exports for other programs: mlx-swift-lm, mlx-vlm, Apple's FastVLM app and Core ML."""
