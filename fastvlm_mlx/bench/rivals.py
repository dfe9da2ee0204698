"""The encoders that FastViTHD is measured against, at true size, with random weights: what they cost, not
what they know. Each feeds the same language model through the same two-layer projector.

Left out, as it takes next to no time: class token, head, position tables resized to other pictures. Where
training has branches or layer scales that fold into a weight, they are folded. Every activation is GELU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn

from ..config import VisionConfig
from ..kernels import by_rows, gelu
from ..models.vision import DepthwiseConv, Expand, Stage, Stem

_TILE = 384  # of AnyRes


# --- transformers ---


@dataclass(frozen=True, slots=True)
class ViTConfig:
    layers: int
    dim: int
    heads: int
    mlp_dim: int
    patch: int = 14


class ViTBlock(nn.Module):
    def __init__(self, config: ViTConfig):
        super().__init__()
        dim = config.dim
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, config.mlp_dim), nn.Linear(config.mlp_dim, dim)
        self._heads = config.heads

    def __call__(self, x: mx.array) -> mx.array:
        batch, rows, dim = x.shape
        parts = mx.split(self.qkv(self.norm1(x)).reshape(batch, rows, 3, self._heads, -1), 3, axis=2)
        q, k, v = (part.squeeze(2).swapaxes(1, 2) for part in parts)
        scale = float((dim // self._heads) ** -0.5)
        seen = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)
        x = x + self.proj(seen.swapaxes(1, 2).reshape(batch, rows, dim))
        return x + self.fc2(gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """(B, H, W, 3) -> (B, H/patch, W/patch, dim); what is over at the edges is not read"""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.patches = nn.Conv2d(3, config.dim, config.patch, config.patch)
        self.blocks = [ViTBlock(config) for _ in range(config.layers)]
        self.norm = nn.LayerNorm(config.dim)

    def __call__(self, pixels: mx.array) -> mx.array:
        x = self.patches(pixels.astype(self.patches.weight.dtype))
        batch, height, width, dim = x.shape
        x = x.reshape(batch, height * width, dim)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).reshape(batch, height, width, dim)


class AnyRes(nn.Module):
    """A picture in tiles and once more as a whole: (1, H, W, 3) -> (1, tiles + 1, tokens of one, dim)"""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def __call__(self, pixels: mx.array) -> mx.array:
        _, height, width, _ = pixels.shape
        tall, wide = height // _TILE, width // _TILE
        tiles = pixels.reshape(tall, _TILE, wide, _TILE, 3).swapaxes(1, 2).reshape(-1, _TILE, _TILE, 3)
        whole = pixels.reshape(_TILE, tall, _TILE, wide, 3).mean((1, 3))[None]
        return self.encoder(mx.concatenate([tiles, whole])).flatten(1, 2)[None]


# --- convolutions ---


@dataclass(frozen=True, slots=True)
class ConvNeXtConfig:
    layers: tuple[int, ...]
    dims: tuple[int, ...]


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.depthwise = DepthwiseConv(dim, 7)
        self.norm = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def __call__(self, x: mx.array) -> mx.array:
        wide = 4 * x.shape[-1]
        return x + by_rows(lambda rows: self.fc2(gelu(self.fc1(self.norm(rows)))), wide, self.depthwise(x))


class ConvNeXt(nn.Module):
    """(B, H, W, 3) -> (B, H/32, W/32, dims[-1])"""

    def __init__(self, config: ConvNeXtConfig):
        super().__init__()
        ins = (3, *config.dims[:-1])
        self.downs = [
            nn.Conv2d(before, dim, 4 if before == 3 else 2, 4 if before == 3 else 2)
            for before, dim in zip(ins, config.dims, strict=True)
        ]
        self.norms = [nn.LayerNorm(dim) for dim in config.dims]  # after the stem, then before each narrowing
        self.blocks = [
            [ConvNeXtBlock(dim) for _ in range(count)]
            for count, dim in zip(config.layers, config.dims, strict=True)
        ]

    def __call__(self, pixels: mx.array) -> mx.array:
        x = self.norms[0](self.downs[0](pixels.astype(self.downs[0].weight.dtype)))
        for index, blocks in enumerate(self.blocks):
            if index:
                x = self.downs[index](self.norms[index - 1](x))
            for block in blocks:
                x = block(x)
        return x


class FastViT(nn.Module):
    """FastViTHD's parts in four stages: (B, H, W, 3) -> (B, H/32, W/32, 2·dims[-1])"""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.stem = Stem(config.dims[0])
        self.stages = [Stage(config, index) for index in range(4)]
        self.expand = Expand(replace(config, dims=(config.dims[0], *config.dims[:4])))  # on the fourth

    def __call__(self, pixels: mx.array) -> mx.array:
        x = self.stem(pixels.astype(self.stem.conv.weight.dtype))
        for stage in self.stages:
            *_, (_, x) = stage.trace(x)
        return self.expand(x)


# --- the table ---


@dataclass(frozen=True, slots=True)
class Rival:
    """`pairs`: sizes of our picture and of its own that are set side by side by default."""

    what: str
    encoder: Callable[[], nn.Module]
    dim: int
    side: Callable[[int], int]  # the pixels it reads of a picture of so many
    tokens: Callable[[int], int]
    pairs: tuple[tuple[int, int], ...]
    multiple: int = 64  # of its picture's side


_VIT_L = ViTConfig(24, 1024, 16, 4096)
_SO400M = ViTConfig(27, 1152, 16, 4304)
_L = ConvNeXtConfig((3, 3, 27, 3), (192, 384, 768, 1536))
_XXL = ConvNeXtConfig((3, 4, 30, 3), (384, 768, 1536, 3072))
_MCI2 = VisionConfig((4, 12, 24, 4, 1), (80, 160, 320, 640, 1280), mlp_ratio=3)


def _whole(size: int) -> int:
    return size


def _grid(stride: int) -> Callable[[int], int]:
    return lambda size: (size // stride) ** 2


RIVALS = {
    # Read at 7/8 of the side (384 px at its own 336), so that a patch of 14 px is 16 px of the picture: the
    # 2,304 tokens at 768 px, 16 times FastViTHD's, that comparisons count.
    "vit-l-14@336": Rival(
        "CLIP's ViT-L/14",
        *(lambda: ViT(_VIT_L), 1024, lambda size: size * 7 // 8, _grid(16)),
        pairs=((768, 384), (768, 768)),
    ),
    "siglip-so400m@384": Rival(
        "SigLIP SO400M/14",
        *(lambda: ViT(_SO400M), 1152, _whole, _grid(14)),
        pairs=((768, 384), (768, 768)),
    ),
    "convnext-l": Rival("ConvNeXt-L", lambda: ConvNeXt(_L), 1536, _whole, _grid(32), ((768, 768),)),
    "convnext-xxl": Rival("ConvNeXt-XXL", lambda: ConvNeXt(_XXL), 3072, _whole, _grid(32), ((768, 768),)),
    "fastvit": Rival(
        "FastViT (MobileCLIP's MCi2)", lambda: FastViT(_MCI2), 1280, _whole, _grid(32), ((768, 768),)
    ),
    "llava-onevision": Rival(
        "LLaVA-OneVision: SigLIP SO400M, tiles of 384 px and the whole (AnyRes)",
        *(lambda: AnyRes(ViT(_SO400M)), 1152, _whole),
        tokens=lambda size: ((size // _TILE) ** 2 + 1) * (_TILE // 14) ** 2,
        pairs=((1024, 1152),),
        multiple=_TILE,
    ),
}
