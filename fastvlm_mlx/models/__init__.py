"""The run form: FastViTHD, projector, Qwen2, and the three together."""
