"""From picture features to the language model's width."""

import mlx.core as mx
import mlx.nn as nn

from ..kernels import gelu


class Projector(nn.Module):
    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.fc1 = nn.Linear(dim_in, dim_out)
        self.fc2 = nn.Linear(dim_out, dim_out)

    def __call__(self, features: mx.array) -> mx.array:
        return self.fc2(gelu(self.fc1(features)))
