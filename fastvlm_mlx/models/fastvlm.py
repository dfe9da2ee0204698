"""Tower, projector and language model together: prompt parts in, embeddings out."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import mlx.core as mx
import mlx.nn as nn

from ..config import ModelConfig
from ..errors import PromptError
from ..inputs.prompt import Part, Picture, Prompt
from .projector import Projector
from .qwen2 import Group, Qwen2
from .vision import FastViTHD


class ReleasedTower(nn.Module):
    """Takes the place of tower and projector once they are freed."""

    def __call__(self, pixels: mx.array) -> mx.array:
        raise PromptError(
            "the vision tower was let go before the first answer, as low_memory asks; "
            "load the model again to show it other pictures"
        )


class FastVLM(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.vision = FastViTHD(config.vision)
        self.projector = Projector(config.vision.feature_dim, config.text.hidden_size)
        self.language = Qwen2(config.text)
        self.group: Group | None = None  # the ranks that share the decoder
        quantization = config.quantization
        if quantization:
            nn.quantize(
                self,
                class_predicate=lambda path, _: (
                    {"group_size": how.group_size, "bits": how.bits}
                    if (how := quantization.get(path))
                    else False
                ),
            )

    def shard(self, group: Group) -> None:
        """Keep this rank's part of the decoder. Tower and projector stay whole."""
        self.language.shard(group)
        self.group = group

    def synchronize(self, ids: mx.array) -> mx.array:
        """The first rank's ids on every rank: the others may have rounded or sampled differently."""
        if self.group is None:
            return ids
        first = mx.array(self.group.rank() == 0, ids.dtype)  # multiplied, so that every rank computes its own
        return mx.distributed.all_sum(ids * first, group=self.group)

    def release_tower(self) -> None:
        """Free the tower and the projector."""
        self.vision = self.projector = ReleasedTower()  # type: ignore[assignment]  # called as they are
        mx.clear_cache()

    def encode_image(self, pixels: mx.array) -> mx.array:
        """(B, H, W, 3) -> (B, tokens, d), tokens in raster order"""
        return self.projector(self.vision(pixels).flatten(1, 2))

    def embed(self, prompt: Prompt, features: Mapping[Picture, mx.array] = MappingProxyType({})) -> mx.array:
        """-> (1, positions, d); `seen` holds what `encode_image` made of pictures, (tokens, d) each"""
        return mx.concatenate([self._embed(part, features) for part in prompt])[None]

    def _embed(self, part: Part, features: Mapping[Picture, mx.array]) -> mx.array:
        if isinstance(part, Picture):
            return features[part] if part in features else self.encode_image(part.pixels)[0]
        return self.language.embedding(mx.array(part.ids, dtype=mx.uint32))
