"""How others write their configurations: config.json and its neighbours to a ModelConfig's values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ...config import STRIDE, ImageConfig, MultiScaleConfig, TextConfig, VisionConfig, read_json
from ...errors import ConfigError
from ...files.strict import parse
from ...inputs.tokenizer import Tokenizer

T = TypeVar("T")
_KINDS = {int: "a whole number", float: "a number", dict: "an object", list: "a list"}
MULTI_SCALE = "multi_scale"
MODEL_TYPES = ("llava_qwen2", "fastvlm", "fast_vlm")

# What the run form takes for granted: (where, key, the values that mean it, what differs otherwise)
_GRANTED: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("", "mm_projector_type", ("mlp2x_gelu",)),
    ("", "projector_hidden_act", ("gelu",)),
    ("", "multimodal_projector_bias", (True,)),
    ("", "mm_use_im_start_end", (False, None)),
    ("", "vision_feature_layer", (-1,)),
    ("", "vision_feature_select_strategy", ("full",)),
    ("text", "hidden_act", ("silu",)),
    ("text", "rope_scaling", (None,)),
    ("text", "use_sliding_window", (False, None)),
)


def check_model_type(raw: Mapping[str, Any], where: Path) -> None:
    kind = raw.get("model_type")
    if kind not in MODEL_TYPES:
        raise ConfigError(
            f"{where}: model_type is {kind!r}; FastVLM checkpoints say {', '.join(MODEL_TYPES)}. "
            "Give a FastVLM checkpoint such as apple/FastVLM-0.5B"
        )


def _get(section: Mapping[str, Any], key: str, kind: type[T], where: Path) -> T | None:
    """A value of the right kind, None if absent or null; anything else is an error that names it."""
    value = section.get(key)
    if kind is float and type(value) is int:
        value = float(value)
    if value is None or (isinstance(value, kind) and not (kind is int and isinstance(value, bool))):
        return value
    wanted = _KINDS[kind]
    raise ConfigError(f"{where}: {key} is {value!r}, not {wanted}; take it from the original checkpoint")


def text_section(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Flat configurations keep the decoder's keys at the top, nested ones under text_config."""
    nested = raw.get("text_config")
    return nested if isinstance(nested, Mapping) and "hidden_size" in nested else raw


def text_config(
    raw: Mapping[str, Any], where: Path, tokenizer: Tokenizer, vocabulary: int, stored_head: bool
) -> TextConfig:
    text = text_section(raw)
    for section, key, good in _GRANTED:
        found = (text if section else raw).get(key, good[0])
        if found not in good:
            raise ConfigError(
                f"{where}: {key} is {json.dumps(found)}, and FastVLM's is {json.dumps(good[0])}; correct it, "
                "or give a FastVLM checkpoint such as apple/FastVLM-0.5B"
            )

    def number(key: str) -> int:
        value = _get(text, key, int, where)
        if value is None or value < 1:
            what = "is missing" if value is None else f"is {value}, not positive"
            raise ConfigError(f"{where}: {key} {what}; take it from the original checkpoint")
        return value

    if tokenizer.size > vocabulary:
        raise ConfigError(
            f"{where.parent}: the tokenizer has {tokenizer.size} ids, and the embedding {vocabulary} rows; "
            "take tokenizer and weights from the same checkpoint"
        )
    if text.get("vocab_size", vocabulary) != vocabulary:
        raise ConfigError(
            f"{where}: vocab_size is {text['vocab_size']!r}, and the embedding has {vocabulary} rows; "
            "correct it, or download the weights again"
        )
    heads, hidden = number("num_attention_heads"), number("hidden_size")
    if (_get(text, "head_dim", int, where) or hidden // heads) * heads != hidden:
        raise ConfigError(f"{where}: head_dim is not hidden_size / num_attention_heads; remove it")
    eps = _get(text, "rms_norm_eps", float, where)
    limits = (
        _get(text, "max_position_embeddings", int, where),
        _get(raw, "tokenizer_model_max_length", int, where),
        tokenizer.max_length,
    )
    layers, kv_heads, intermediate = map(
        number, ("num_hidden_layers", "num_key_value_heads", "intermediate_size")
    )
    try:
        return TextConfig(
            hidden_size=hidden,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            intermediate_size=intermediate,
            vocab_size=vocabulary,
            tied=is_tied(raw, stored_head),
            rope_theta=_rope_theta(text, where),
            norm_eps=1e-6 if eps is None else eps,
            context=min((limit for limit in limits if limit), default=32_768),
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}; take them from the original checkpoint") from None


def is_tied(raw: Mapping[str, Any], stored_head: bool) -> bool:
    """Whether the embedding serves as head. Configurations in the wild contradict their weights:

    without a stored head there is nothing else to use; a stored one is used unless the decoder's
    section, or failing that the top, says tied (the reference then ignores what is stored).
    """
    if not stored_head:
        return True
    for section in (text_section(raw), raw):
        if (said := section.get("tie_word_embeddings")) is not None:
            return bool(said)
    return False


def _rope_theta(text: Mapping[str, Any], where: Path) -> float:
    rope = _get(text, "rope_parameters", dict, where) or {}
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(f"{where}: rope_type is {rope['rope_type']!r}; only 'default' is implemented")
    theta = _get(text, "rope_theta", float, where) or _get(rope, "rope_theta", float, where)
    if theta is None:
        raise ConfigError(f"{where}: rope_theta is missing; FastVLM's is 1000000.0, add it")
    return theta


def check_vision(raw: Mapping[str, Any], found: VisionConfig, where: Path) -> None:
    """A vision_config that speaks must say what the tensors say; many are empty or absent."""
    said = _get(raw, "vision_config", dict, where) or {}
    said = _get(said, "model_args", dict, where) or said
    for key, value in (("layers", found.layers), ("embed_dims", found.dims)):
        if (claimed := _get(said, key, list, where)) is not None and tuple(claimed) != value:
            raise ConfigError(
                f"{where}: vision_config.{key} is {claimed}, and the tensors say {list(value)}; correct it"
            )


def multi_scale(raw: Mapping[str, Any], where: Path) -> MultiScaleConfig | None:
    """What our own training says of it, as average pooling leaves no tensors."""
    said = _get(raw, "vision_config", dict, where) or {}
    if (claimed := said.get(MULTI_SCALE)) is None:
        return None
    at = f"vision_config.{MULTI_SCALE}"
    return parse(MultiScaleConfig, claimed, where, repair="take it from the training run's recipe", at=at)


def image_config(raw: Mapping[str, Any], directory: Path) -> ImageConfig:
    """The picture size a checkpoint was made for, from whichever file says it."""
    file = directory / "preprocessor_config.json"
    processor = read_json(file) if file.exists() else {}
    for key, good in (("image_mean", 0.0), ("image_std", 1.0)):
        values = _get(processor, key, list, file)
        if values is not None and any(value != good for value in values):
            raise ConfigError(f"{file}: {key} is {values}; FastVLM's is {[good] * 3}, correct it")
    size = next((s for s in _sizes(raw, processor) if isinstance(s, int) and s > 0), 1024)
    if size % STRIDE:
        raise ConfigError(
            f"{directory}: made for {size} px pictures, not a multiple of {STRIDE}; check {file}"
        )
    return ImageConfig(size)


def _sizes(raw: Mapping[str, Any], processor: Mapping[str, Any]) -> Iterable[object]:
    crop = processor.get("crop_size")
    yield crop.get("height") if isinstance(crop, Mapping) else crop
    tower = str(raw.get("mm_vision_tower", "")).rpartition("_")[2]  # mobileclip_l_1024
    yield int(tower) if tower.isdigit() else None
    vision = raw.get("vision_config")
    yield vision.get("image_size") if isinstance(vision, Mapping) else None
    tokens = raw.get("image_seq_length")
    yield math.isqrt(tokens) * STRIDE if isinstance(tokens, int) else None


def quantization(raw: Mapping[str, Any], where: Path) -> Mapping[str, Any]:
    return _get(raw, "quantization", dict, where) or {}


def eos_token_ids(raw: Mapping[str, Any], directory: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every id that ends an answer. Sampling settings in generation_config.json are the reference's
    to hide (it renames the file while it runs), so only the stop ids are read from it."""
    file = directory / "generation_config.json"
    ids: set[int] = set()
    for section in (raw, text_section(raw), read_json(file) if file.exists() else {}):
        said = section.get("eos_token_id")
        ids |= {id for id in (said if isinstance(said, list) else [said]) if isinstance(id, int)}
    for token in (tokenizer.eos_token, "<|im_end|>", "<|endoftext|>"):
        if token is not None and (id := tokenizer.id_of(token)) is not None:
            ids.add(id)
    if not ids:
        raise ConfigError(f"{directory}: no eos_token_id and no <|im_end|> token; answers would never end")
    return tuple(sorted(ids))
