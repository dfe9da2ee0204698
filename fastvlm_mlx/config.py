"""What a model is, as frozen values. One JSON form (the canonical config.json), parsed strictly.

Only `convert` knows how other projects write their configurations.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .errors import ConfigError
from .files.strict import parse

FORMAT = "fastvlm-mlx"
FORMAT_VERSION = 1
STAGES = 5
MOST_LAYERS = 10_000  # a sane bound, so that a damaged number does not allocate memory
STRIDE = 64  # pixels per visual token, each way: the stem's 4, then four halvings

IMAGE_MARK = "<image>"  # marks the place of a picture in a text; never a token
SQUARE_MODES = (
    "pad",
    "crop",
    "stretch",
)  # the ways to make a picture square; a model is trained with one of them

KERNELS_VARIABLE = "FASTVLM_MLX_KERNELS"
KERNEL_MODES = ("tuned", "stock")  # what was found fastest on this machine, or MLX's own

GROUP_SIZES = (32, 64, 128)
BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, slots=True)
class MultiScaleConfig:
    """Earlier stages, counted from 1, whose outputs are concatenated to the last one's features, on its
    grid."""

    stages: tuple[int, ...]
    pooling: Literal["average", "depthwise"]

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("multi_scale names no stage; name some, or leave it out")
        for stage in self.stages:
            if not 0 < stage < STAGES:
                raise ConfigError(
                    f"multi_scale has no stage {stage} to add: the earlier ones are 1 to {STAGES - 1}"
                )
            if self.stages.count(stage) > 1:
                raise ConfigError(f"multi_scale names stage {stage} twice")

    @property
    def listed(self) -> str:
        return f"stages {', '.join(map(str, self.stages))}, {self.pooling}"


@dataclass(frozen=True, slots=True)
class Pool:
    """A stage, counted from 0, whose output of `dim` channels is pooled by `factor` in each direction."""

    stage: int
    dim: int
    factor: int


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """FastViTHD. Stages before `attention_from` mix tokens by convolution, the others by attention."""

    layers: tuple[int, ...] = (2, 12, 24, 4, 2)
    dims: tuple[int, ...] = (96, 192, 384, 768, 1536)
    mlp_ratio: int = 4
    attention_from: int = 3
    head_dim: int = 32
    squeeze: int = 16  # the reduction of the last convolution's squeeze-and-excite
    multi_scale: MultiScaleConfig | None = None

    @property
    def expanded_dim(self) -> int:
        return 2 * self.dims[-1]

    @property
    def pools(self) -> tuple[Pool, ...]:
        stages = self.multi_scale.stages if self.multi_scale else ()
        return tuple(Pool(stage - 1, self.dims[stage - 1], 2 ** (STAGES - stage)) for stage in stages)

    @property
    def feature_dim(self) -> int:
        """The width of the projector's input."""
        return sum(pool.dim for pool in self.pools) + self.expanded_dim

    def __post_init__(self) -> None:
        if not len(self.layers) == len(self.dims) == STAGES:
            raise ConfigError(
                f"the tower has {len(self.layers)} depths and {len(self.dims)} widths, not {STAGES} of each"
            )
        sizes = (*self.layers, *self.dims, self.mlp_ratio, self.head_dim, self.squeeze)
        if min(sizes) < 1 or max(self.layers) > MOST_LAYERS or self.squeeze > self.expanded_dim:
            raise ConfigError(f"the tower's sizes make no sense ({self})")


@dataclass(frozen=True, slots=True)
class TextConfig:
    """Qwen2. `context` is the maximum number of positions, text and picture tokens together."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    intermediate_size: int
    vocab_size: int
    tied: bool
    rope_theta: float = 1_000_000.0
    norm_eps: float = 1e-6
    context: int = 32_768

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

    def __post_init__(self) -> None:
        sizes = (self.hidden_size, self.layers, self.heads, self.kv_heads, self.intermediate_size)
        if min(*sizes, self.vocab_size, self.context) < 1 or self.layers > MOST_LAYERS:
            raise ConfigError(f"the language model's sizes make no sense ({self})")
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size}, {self.heads} heads and {self.kv_heads} kv heads do not fit "
                "together"
            )
        if not (self.norm_eps > 0 and self.rope_theta > 0):
            raise ConfigError(f"norm_eps {self.norm_eps} and rope_theta {self.rope_theta} must be positive")


@dataclass(frozen=True, slots=True)
class ImageConfig:
    size: int = 1024
    mode: str = "pad"

    def __post_init__(self) -> None:
        if self.size < STRIDE or self.size % STRIDE:
            raise ConfigError(f"the picture size {self.size} is not a multiple of {STRIDE}")
        if self.mode not in SQUARE_MODES:
            modes = ", ".join(SQUARE_MODES)
            raise ConfigError(f"no model has image mode {self.mode!r}; choose one of {modes}")


@dataclass(frozen=True, slots=True)
class Quantization:
    bits: int
    group_size: int

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ConfigError(f"cannot quantize to {self.bits} bits; choose one of {_listed(BITS)}")
        if self.group_size not in GROUP_SIZES:
            raise ConfigError(f"no group size {self.group_size}; choose one of {_listed(GROUP_SIZES)}")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    vision: VisionConfig
    text: TextConfig
    image: ImageConfig = ImageConfig()
    eos_token_ids: tuple[int, ...] = ()
    quantization: Mapping[str, Quantization] = field(default_factory=dict)  # module path -> how

    def to_json(self) -> str:
        body = {"format": FORMAT, "format_version": FORMAT_VERSION, "model_type": "fastvlm_mlx"}
        sections = dataclasses.asdict(self)
        if self.vision.multi_scale is None:
            del sections["vision"]["multi_scale"]  # older releases read the file, too
        return json.dumps(body | sections, indent=2) + "\n"


def is_canonical(raw: Mapping[str, Any]) -> bool:
    return raw.get("format") == FORMAT


def from_json(raw: Mapping[str, Any], where: Path) -> ModelConfig:
    """Parse a canonical config.json; anything unknown, missing or of the wrong type is an error."""
    version = raw.get("format_version")
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"{where}: format_version {version!r}, and this release reads {FORMAT_VERSION}; "
            "upgrade with `pip install -U fastvlm-mlx` or convert the original checkpoint again"
        )
    body = {k: v for k, v in raw.items() if k not in ("format", "format_version", "model_type")}
    return parse(ModelConfig, body, where, repair="convert the checkpoint again")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or an error that names the file and the line."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; a model directory needs one") from None
    except PermissionError:
        raise ConfigError(f"{path}: may not be read; check its permissions") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); download it again") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not JSON ({error}); download it again or mend that line") from None
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path}: holds a {type(value).__name__} where an object belongs; download it again"
        )
    return value


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values[:-1])) + f" or {values[-1]}"


def kernel_mode(named: str) -> str:
    if named not in KERNEL_MODES:
        raise ConfigError(
            f"no kernels {named!r} (--kernels or {KERNELS_VARIABLE}); choose one of {', '.join(KERNEL_MODES)}"
        )
    return named
