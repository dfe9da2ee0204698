"""What tests of training from nothing share: the smallest model that a recipe can ask for."""

MODEL = """
[model.vision]
layers = [1, 1, 1, 1, 1]
dims = [4, 4, 8, 32, 32]
mlp_ratio = 1

[model.text]
hidden_size = 32
layers = 1
heads = 2
kv_heads = 1
intermediate_size = 32
vocab_size = 400
tied = true
context = 256

[model.image]
size = 256
"""
