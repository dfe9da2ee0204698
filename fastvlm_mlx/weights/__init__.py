"""A model's name to a model in memory: the hub, safetensors files, checkpoints."""
