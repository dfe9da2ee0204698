"""FastViTHD and other encoders before the same language model, by the paper's method: vision and projector,
then the prefill of the visual tokens alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..inputs.prompt import Picture, Prompt
from ..models.fastvlm import FastVLM
from ..models.projector import Projector
from ..vlm import VLM
from ..weights.checkpoint import Loaded, parameters
from . import untrained
from .measure import Case, Run, Turn
from .report import median
from .rivals import RIVALS, Rival
from .table import Table, ms

OURS = "FastViTHD"


@dataclass(frozen=True, slots=True)
class Claim:
    rival: str
    size: int  # of our picture
    their_size: int
    of: str  # "time" or "tokens": theirs over ours
    claimed: float
    note: str


CLAIMS = (
    Claim("vit-l-14@336", 768, 384, "time", 3.2, "LLaVA-1.5's setup, there with Vicuna-7B"),
    Claim("vit-l-14@336", 768, 768, "tokens", 16, "at one picture size"),
    Claim("fastvit", 768, 768, "tokens", 4, "at one picture size"),
    Claim("llava-onevision", 1024, 1152, "time", 85, "with Qwen2-0.5B, M1 Max, tower on the Neural Engine"),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Medians, side by side."""

    rival: str
    size: int
    their_size: int
    tokens: int
    their_tokens: int
    vision_s: float  # and projector
    their_vision_s: float
    prefill_s: float
    their_prefill_s: float

    @property
    def time(self) -> float:
        """How many times as long it takes."""
        return (self.their_vision_s + self.their_prefill_s) / (self.vision_s + self.prefill_s)

    @property
    def token(self) -> float:
        return self.their_tokens / self.tokens


@dataclass(frozen=True, slots=True, eq=False)
class Counted(Picture):
    """A picture that an encoder makes so many tokens of."""

    count: int

    @property
    def positions(self) -> int:
        return self.count


class Contender(VLM):
    """A rival encoder before the language model of `ours`, whose weights it shares."""

    def __init__(self, ours: VLM, rival: Rival):
        model = FastVLM(ours.config)  # lazy: what is replaced below is never made
        model["vision"] = rival.encoder()
        model["projector"] = Projector(rival.dim, ours.config.text.hidden_size)
        for part in ("vision", "projector"):
            untrained.fill(model[part], ours.dtype)
        model["language"] = ours.model.language
        super().__init__(Loaded(model, ours.config, ours.tokenizer, "random", ours.dtype, {}))
        self._rival = rival

    def prompt(self, text: str, images: Sequence[Any] = (), system: str | None = None, **_: Any) -> Prompt:
        """The picture alone, in the size that the encoder reads; what is cut off makes no difference."""
        ((picture,),) = images
        size = picture.pixels.shape[1]
        side = self._rival.side(size)
        return (Counted(picture.pixels[:, :side, :side], self._rival.tokens(size)),)


def named(text: str) -> list[str]:
    """
    >>> named("fastvit,convnext-l")
    ['fastvit', 'convnext-l']
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in RIVALS:
            raise ConfigError(
                f"--against {name!r}: no such rival; choose from {', '.join(RIVALS)}, "
                "or transformers or mlx-vlm alone"
            )
    return names


def pairs_of(names: Sequence[str], sizes: Sequence[int] | None) -> dict[str, list[tuple[int, int]]]:
    """By rival, sizes of our picture and of its own."""
    if sizes is None:
        return {name: list(RIVALS[name].pairs) for name in names}
    for name in names:
        for size in sizes:
            if size % RIVALS[name].multiple:
                raise ConfigError(
                    f"{name} reads pictures whose sides are multiples of {RIVALS[name].multiple} px, not "
                    f"{size}; give other --sizes or leave them out"
                )
    return {name: [(size, size) for size in sizes] for name in names}


def weight_bytes(names: Sequence[str], width: int) -> int:
    """Of the rivals' encoders, without making them."""
    made = (parameters(RIVALS[name].encoder()) for name in names)
    return width * sum(array.size for arrays in made for array in arrays.values())


def turns(ours: VLM, pairs: Mapping[str, Sequence[tuple[int, int]]]) -> dict[tuple[str, int], Turn]:
    """By encoder and picture size, what is to be measured in turn."""
    found: dict[tuple[str, int], Turn] = {}
    for name, sizes in pairs.items():
        theirs = Contender(ours, RIVALS[name])
        for size, their_size in sizes:
            found[OURS, size] = ours, Case(size, 1, asks=False)
            found[name, their_size] = theirs, Case(their_size, 1, asks=False)
    return found


def side_by_side(
    pairs: Mapping[str, Sequence[tuple[int, int]]], measured: Mapping[tuple[str, int], Sequence[Run]]
) -> list[Pair]:
    """Those of which both sides were measured."""
    rows = []
    for name, sizes in pairs.items():
        for size, their_size in sizes:
            mine, theirs = measured[OURS, size], measured[name, their_size]
            if mine and theirs:
                vision, prefill = zip(*map(_times, (mine, theirs)), strict=True)
                counts = mine[0].image_tokens, theirs[0].image_tokens
                rows.append(Pair(name, size, their_size, *counts, *vision, *prefill))
    return rows


def _times(runs: Sequence[Run]) -> tuple[float, float]:
    return median(runs, "vision_s") + median(runs, "projector_s"), median(runs, "prefill_s")


def table(rows: Sequence[Pair]) -> Table:
    heads = ("encoder", "px", "ours px", "tokens", "ours", "vision ms", "ours", "prefill ms", "ours")
    told = [
        (
            *(row.rival, str(row.their_size), str(row.size), str(row.their_tokens), str(row.tokens)),
            *map(ms, (row.their_vision_s, row.vision_s, row.their_prefill_s, row.prefill_s)),
            f"{row.time:.2f}×",
            f"{row.token:.2f}×",
        )
        for row in rows
    ]
    return Table(
        "Other encoders before the same language model",
        (*heads, "time", "tokens"),
        told,
        (
            "Medians in turn after a warm-up; random weights of true size. Time: vision with projector + "
            "prefill of the visual tokens. The last two columns: theirs ÷ ours. px is the picture's side, of "
            "which vit-l-14@336 reads 7/8: 384 px at 336.",
        ),
    )


def claim_table(rows: Sequence[Pair]) -> Table:
    """The paper's claims about the pairs that were measured."""
    told = []
    for claim in CLAIMS:
        for row in rows:
            if (row.rival, row.size, row.their_size) == (claim.rival, claim.size, claim.their_size):
                here = row.time if claim.of == "time" else row.token
                what = f"{claim.rival} at {claim.their_size} px, ours at {claim.size}"
                told.append((what, claim.of, f"{claim.claimed:g}×", f"{here:.2f}×", claim.note))
    heads = ("pair", "ratio of", "claimed", "here", "claimed of")
    return Table("The paper's claims", heads, told, ("Which picture sizes a claim compares is our reading.",))
