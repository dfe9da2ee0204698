"""Checkpoints in, checkpoints out: layouts, fusing, quantization, repair."""
