"""How others name their tensors: one table per layout, template to template.

In a template `{i}`, `{n}` and `{l}` stand for a number (block, branch, layer); `{wb}` for weight or
bias; `{bn}` for a BatchNorm's four arrays; `{q}` for what a Linear may hold, quantized or not. A row
whose target is None drops a tensor on purpose. A key that no row matches is an error.

The targets are the *raw* names: the run form's, with training branches beside them where a layout
still has them (`kxk.{n}`, `scale`, `skip`, `large`, `small`, `bn`, `layer_scale`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NewType

import mlx.core as mx

from ...errors import CheckpointError

RawWeights = NewType("RawWeights", dict[str, mx.array])  # raw names, NHWC, nothing fused yet

_ANY, _NUMBER = None, ()  # what else a placeholder may stand for
_PLACEHOLDERS: Mapping[str, tuple[str, ...] | None] = {
    "i": _NUMBER,
    "n": _NUMBER,
    "l": _NUMBER,
    "wb": ("weight", "bias"),
    "bn": ("weight", "bias", "running_mean", "running_var"),
    "q": ("weight", "bias", "scales", "biases"),
    "any": _ANY,
}
Row = tuple[str, str | None]


@dataclass(frozen=True)
class Layout:
    name: str
    projector: str  # the prefix that no other layout has
    tower: str
    channels_first: bool
    rows: tuple[Row, ...]

    def raw_name(self, key: str) -> str | None:
        """The raw name of a stored key, None if it is dropped; KeyError if there is no rule."""
        for source, target in self.rows:
            if (found := matched(source, key)) is not None:
                return target.format_map(found) if target else None
        raise KeyError(key)

    def stored_name(self, raw: str) -> str:
        """The key this layout stores a raw name under (of several, the fused one)."""
        for source, target in self.rows:
            if target and (found := matched(target, raw)) is not None:
                return source.format_map(found)
        return raw


def matched(template: str, name: str) -> dict[str, str] | None:
    """What the placeholders stand for, if the name is of the template.

    Regular expressions would do it too, but to compile hundreds was a good part of a cold start.
    """
    front, pieces = _pieces(template)
    if not name.startswith(front):
        return None
    found: dict[str, str] = {}
    place = len(front)
    for number, (placeholder, after) in enumerate(pieces, 1):
        last = number == len(pieces)
        end = len(name) - len(after) if last else name.find(after, place)
        value, kind = name[place:end], _PLACEHOLDERS[placeholder]
        fits = value if kind is _ANY else value.isdecimal() if kind is _NUMBER else value in kind
        if end < place or not fits or not name.startswith(after, end):
            return None
        found[placeholder] = value
        place = end + len(after)
    return found if place == len(name) else None


@cache
def _pieces(template: str) -> tuple[str, list[tuple[str, str]]]:
    """`a.{i}.b` -> "a.", [("i", ".b")]"""
    front, *parts = re.split(r"\{(\w+)\}", template)
    return front, list(zip(parts[::2], parts[1::2], strict=True))


@dataclass(frozen=True)
class _Words:
    """What a layout calls the pieces of a tower."""

    fused: str = "reparam_conv"
    branch: str = "rbr_conv"
    scale: str = "rbr_scale"
    skip: str = "rbr_skip"
    large_fused: str = "lkb_reparam"
    large: str = "lkb_origin"
    position: str = "pe"
    ffn: str = "convffn"
    gamma: str = ""
    squeeze: str = "se.reduce"
    excite: str = "se.expand"


@dataclass(frozen=True)
class _Places:
    """Where it keeps them, stage by stage."""

    stem: tuple[str, ...]
    blocks: tuple[str, ...]
    downsample: Mapping[int, str]
    position: Mapping[int, str]
    expand: str


_APPLE = _Words()
_TIMM = _Words(
    branch="conv_kxk",
    scale="conv_scale",
    skip="identity",
    large_fused="reparam_conv",
    large="large_conv",
    position="pos_enc",
    ffn="mlp",
    gamma=".gamma",
    squeeze="se.fc1",
    excite="se.fc2",
)


def _apple_places(stem: str) -> _Places:
    return _Places(
        stem=tuple(f"{stem}.{n}" for n in range(3)),
        blocks=tuple(f"network.{n}" for n in (0, 2, 4, 7, 10)),
        downsample={stage: f"network.{n}.proj" for stage, n in ((1, 1), (2, 3), (3, 5), (4, 8))},
        position={stage: f"network.{n}" for stage, n in ((3, 6), (4, 9))},
        expand="conv_exp",
    )


_TIMM_PLACES = _Places(
    stem=tuple(f"stem.{n}" for n in range(3)),
    blocks=tuple(f"stages.{stage}.blocks" for stage in range(5)),
    downsample={stage: f"stages.{stage}.downsample.proj" for stage in range(1, 5)},
    position={stage: f"stages.{stage}.pos_emb" for stage in range(1, 5)},
    expand="final_conv",
)


def _mobile_one(words: _Words, source: str, target: str) -> list[Row]:
    return [
        (f"{source}.{words.fused}.{{wb}}", f"{target}.{{wb}}"),
        (f"{source}.{words.branch}.{{n}}.conv.weight", f"{target}.kxk.{{n}}.conv.weight"),
        (f"{source}.{words.branch}.{{n}}.bn.{{bn}}", f"{target}.kxk.{{n}}.bn.{{bn}}"),
        (f"{source}.{words.scale}.conv.weight", f"{target}.scale.conv.weight"),
        (f"{source}.{words.scale}.bn.{{bn}}", f"{target}.scale.bn.{{bn}}"),
        (f"{source}.{words.skip}.{{bn}}", f"{target}.skip.{{bn}}"),
    ]


def _tower(prefix: str, words: _Words, places: _Places) -> list[Row]:
    rows: list[Row] = []
    for source, name in zip(places.stem, ("conv", "depthwise", "pointwise"), strict=True):
        rows += _mobile_one(words, source, f"stem.{name}")
    for stage, source in places.downsample.items():
        target = f"stages.{stage}.downsample"
        rows += [
            (f"{source}.0.{words.large_fused}.{{wb}}", f"{target}.depthwise.{{wb}}"),
            *(
                (f"{source}.0.{theirs}.{part}", f"{target}.depthwise.{ours}.{part}")
                for theirs, ours in ((words.large, "large"), ("small_conv", "small"))
                for part in ("conv.weight", "bn.{bn}")
            ),
            *_mobile_one(words, f"{source}.1", f"{target}.pointwise"),
        ]
    for stage, source in places.position.items():
        target = f"stages.{stage}.position"
        rows += [
            (f"{source}.{words.fused}.{{wb}}", f"{target}.{{wb}}"),
            (f"{source}.{words.position}.{{wb}}", f"{target}.conv.{{wb}}"),
        ]
    for stage, blocks in enumerate(places.blocks):
        source, target = f"{blocks}.{{i}}", f"stages.{stage}.blocks.{{i}}"
        mixer = f"{source}.token_mixer"
        rows += [
            (f"{mixer}.{words.fused}.{{wb}}", f"{target}.mixer.{{wb}}"),
            *_mobile_one(words, f"{mixer}.mixer", f"{target}.mixer.mixer"),
            *_mobile_one(words, f"{mixer}.norm", f"{target}.mixer.norm"),
            (f"{mixer}.layer_scale{words.gamma}", f"{target}.mixer.layer_scale"),
            (f"{mixer}.qkv.{{q}}", f"{target}.attention.qkv.{{q}}"),
            (f"{mixer}.proj.{{q}}", f"{target}.attention.proj.{{q}}"),
            (f"{source}.norm.{{wb}}", f"{target}.norm.{{wb}}"),
            (f"{source}.layer_scale{words.gamma}", f"{target}.layer_scale"),
            (f"{source}.layer_scale_{{n}}{words.gamma}", f"{target}.layer_scale_{{n}}"),
            (f"{source}.{words.ffn}.conv.conv.weight", f"{target}.ffn.depthwise.conv.weight"),
            (f"{source}.{words.ffn}.conv.bn.{{bn}}", f"{target}.ffn.depthwise.bn.{{bn}}"),
            (f"{source}.{words.ffn}.fc1.{{wb}}", f"{target}.ffn.fc1.{{wb}}"),
            (f"{source}.{words.ffn}.fc2.{{wb}}", f"{target}.ffn.fc2.{{wb}}"),
        ]
    rows += [
        *_mobile_one(words, places.expand, "expand.depthwise"),
        (f"{places.expand}.{words.squeeze}.{{wb}}", "expand.squeeze.{wb}"),
        (f"{places.expand}.{words.excite}.{{wb}}", "expand.excite.{wb}"),
    ]
    return [(f"{prefix}{source}", f"vision.{target}") for source, target in rows] + [
        (f"{prefix}head.{{any}}", None),  # the CLIP head, unused by the language model
        (f"{prefix}{{any}}.num_batches_tracked", None),  # a training counter
    ]


def _language(prefix: str, head: str) -> list[Row]:
    layer, ours = f"{prefix}layers.{{l}}", "language.layers.{l}"
    return [
        (f"{prefix}embed_tokens.{{q}}", "language.embedding.{q}"),
        (f"{prefix}norm.weight", "language.norm.weight"),
        (f"{head}.{{q}}", "language.head.{q}"),
        (f"{layer}.input_layernorm.weight", f"{ours}.attention_norm.weight"),
        (f"{layer}.post_attention_layernorm.weight", f"{ours}.mlp_norm.weight"),
        *((f"{layer}.self_attn.{x}_proj.{{q}}", f"{ours}.attention.{x}.{{q}}") for x in "qkv"),
        (f"{layer}.self_attn.o_proj.{{q}}", f"{ours}.attention.out.{{q}}"),
        *((f"{layer}.mlp.{x}_proj.{{q}}", f"{ours}.mlp.{x}.{{q}}") for x in ("gate", "up", "down")),
        (f"{layer}.self_attn.rotary_emb.inv_freq", None),  # a constant that old releases stored
    ]


def _projector(first: str, second: str) -> list[Row]:
    return [(f"{first}.{{q}}", "projector.fc1.{q}"), (f"{second}.{{q}}", "projector.fc2.{q}")]


APPLE_LLAVA = Layout(
    "apple-llava",
    projector="model.mm_projector.",
    tower="model.vision_tower.vision_tower.model.",
    channels_first=True,
    rows=(
        *_tower("model.vision_tower.vision_tower.model.", _APPLE, _apple_places("patch_embed")),
        (
            "model.vision_tower.vision_tower.model.multi_scale.{i}.weight",  # of our own training alone
            "vision.multi_scale.pools.{i}.weight",
        ),
        *_projector("model.mm_projector.0", "model.mm_projector.2"),
        *_language("model.", "lm_head"),
    ),
)
HF_TIMM = Layout(
    "hf-timm",
    projector="model.multi_modal_projector.",
    tower="model.vision_tower.timm_model.",
    channels_first=True,
    rows=(
        *_tower("model.vision_tower.timm_model.", _TIMM, _TIMM_PLACES),
        *_projector("model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2"),
        *_language("model.language_model.", "lm_head"),
    ),
)
MLX_VLM = Layout(
    "mlx-vlm",
    projector="mm_projector.",
    tower="vision_tower.vision_model.",
    channels_first=False,
    rows=(
        *_tower("vision_tower.vision_model.", _APPLE, _apple_places("patch_embed.blocks")),
        *_projector("mm_projector.0", "mm_projector.2"),
        *_language("language_model.model.", "language_model.lm_head"),
    ),
)
APPLE_APP = Layout(
    "apple-app",
    projector="multi_modal_projector.",
    tower="fastvithd.",  # a Core ML package beside the weights, never a tensor
    channels_first=False,
    rows=(
        *_projector("multi_modal_projector.linear_0", "multi_modal_projector.linear_2"),
        *_language("language_model.model.", "language_model.lm_head"),
    ),
)
LAYOUTS = (APPLE_LLAVA, HF_TIMM, MLX_VLM, APPLE_APP)


def detect(keys: Iterable[str], where: Path) -> Layout:
    """The one layout that has these keys."""
    keys = list(keys)
    found = [
        layout for layout in LAYOUTS if any(key.startswith((layout.projector, layout.tower)) for key in keys)
    ]
    if len(found) == 1:
        return found[0]
    known = ", ".join(layout.name for layout in LAYOUTS)
    if found:
        names = " and ".join(layout.name for layout in found)
        raise CheckpointError(f"{where}: holds tensors of {names}; keep the files of one layout")
    if any(key.startswith(("model.layers.", "language_model.")) for key in keys):
        raise CheckpointError(
            f"{where}: a language model alone, without vision tower and projector; "
            "give a FastVLM checkpoint such as apple/FastVLM-0.5B"
        )
    sample = ", ".join(map(repr, sorted(keys)[:3]))
    raise CheckpointError(
        f"{where}: not a layout known here ({known}), its tensors begin {sample}; give a FastVLM checkpoint "
        "such as apple/FastVLM-0.5B"
    )


def rename(layout: Layout, stored: Mapping[str, mx.array], where: Path) -> RawWeights:
    """Stored names to raw ones, convolutions to NHWC; every key needs a rule."""
    raw: dict[str, mx.array] = {}
    for key, array in stored.items():
        try:
            name = layout.raw_name(key)
        except KeyError:
            raise CheckpointError(
                f"{where}: {layout.name} has no rule for {key!r}; the file is newer than this version or not "
                f"a FastVLM. Run `fastvlm-mlx doctor {where}` for the full list"
            ) from None
        if name is not None:
            turn = layout.channels_first and array.ndim == 4
            raw[name] = array.transpose(0, 2, 3, 1) if turn else array
    return RawWeights(raw)
