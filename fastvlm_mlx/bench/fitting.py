"""Which picture sizes a model has room for, in its context and on a machine, before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..config import STRIDE, ModelConfig
from ..errors import ConfigError
from ..inference.decoding import PIXELS_AT_ONCE
from ..inputs.tiling import Sides
from . import cost

SIZES = (256, 512, 768, 1024, 1536)
TEXT_POSITIONS = 64  # more than the question and the template take
_POSITIONS = 256  # of text and answer, for the estimate of memory


def chosen(
    asked: Sequence[int] | None,
    defaults: Sequence[int],
    config: ModelConfig,
    name: str,
    *,
    batch: int,
    tokens: int,
    width: int,
    memory: int,
    sides: Callable[[int], Sequence[Sides]] = lambda size: ((size, size),),
) -> list[int]:
    """What is asked for, or refused; of the defaults those that fit. `sides` are the pieces of a picture."""

    def positions(size: int) -> int:
        return sum((wide // STRIDE) * (tall // STRIDE) for wide, tall in sides(size))

    room = config.text.context - tokens - TEXT_POSITIONS
    sizes = list(asked or defaults)
    within = [size for size in sizes if positions(size) <= room]
    if not within or (asked and len(within) < len(sizes)):
        size = min(sizes) if not within else max(sizes)
        raise ConfigError(
            f"{size} px make {positions(size)} positions, and beside text and --tokens the model has "
            f"room for {max(room, 0)}; give smaller --sizes or fewer --tokens"
        )
    fitting = [size for size in within if needed(config, size, batch, width, len(sides(size))) <= memory]
    if not fitting or (asked and len(fitting) < len(within)):
        size = min(within) if not fitting else max(within)
        refuse_beyond(config, name, size, batch, width, memory, len(sides(size)))
    return fitting


def needed(config: ModelConfig, size: int, batch: int, width: int, pieces: int = 1) -> int:
    return sum(_parts(config, size, batch, width, pieces))


def refuse_beyond(
    config: ModelConfig, name: str, size: int, batch: int, width: int, memory: int, pieces: int = 1
) -> None:
    parts = _parts(config, size, batch, width, pieces)
    if sum(parts) <= memory:
        return
    tower, language, cache, layer = (f"{part / 1e9:.2f}" for part in parts)
    raise ConfigError(
        f"{name} at {size} px takes {sum(parts) / 1e9:.2f} GB ({tower} tower + {language} language model + "
        f"{cache} keys and values + {layer} widest layer, {8 * width} bit) and this machine has "
        f"{memory / 1e9:.2f}; choose a smaller model, --sizes, --batch or --dtype"
    )


def _parts(config: ModelConfig, size: int, batch: int, width: int, pieces: int) -> tuple[int, int, int, int]:
    beside = _POSITIONS + (pieces - 1) * cost.tokens(size)
    held = cost.held(config, size, beside, width, cost.packed_as(config))
    together = min(batch * pieces, max(1, PIXELS_AT_ONCE // size**2))
    return held.tower, held.language, batch * held.cache, together * held.activations
