"""Which language model and picture size answer within a time on this machine, by measuring them.

The tower is the same for all, so what the smaller model takes too long for is not tried with a larger one,
nor a larger picture where a smaller one is too slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

from ..config import Quantization
from ..errors import ConfigError
from . import cost
from .machine import Machine
from .paper import ACCURACY, ACCURACY_SIZE
from .table import Table, ms
from .variants import VARIANTS

POSITIONS = 320  # a question with its template and an answer: what memory is estimated for


@dataclass(frozen=True, slots=True)
class Choice:
    """What may be measured. `bytes` is the estimate of what it takes."""

    variant: str
    bits: int | None  # a weight of the language model; None: floats
    size: int
    bytes: int

    @property
    def weights(self) -> str:
        return f"{self.bits} bit" if self.bits else "floats"

    @property
    def worth(self) -> tuple[int, int]:
        """How large the language model and the picture are."""
        return list(VARIANTS).index(self.variant), self.size

    def no_less_than(self, other: Choice) -> bool:
        return all(mine >= theirs for mine, theirs in zip(self.worth, other.worth, strict=True))


@dataclass(frozen=True, slots=True)
class Point:
    choice: Choice
    vision_s: float
    prefill_s: float
    ttft_s: float

    @property
    def accuracy(self) -> float | None:
        """Mean of the ten published benchmarks, which are of floats at one size."""
        published = self.choice.size == ACCURACY_SIZE and self.choice.bits is None
        return mean(ACCURACY[self.choice.variant]) if published else None


Measured = tuple[float, float, float]  # vision, prefill, time to the first token


def measured(
    choices: Iterable[Choice], budget_s: float, memory: float, measure: Callable[[Choice], Measured]
) -> Iterator[tuple[Choice, Point | None]]:
    """Every choice, small models and sizes first, with a point where it was worth measuring.

    Not measured: what takes more than `memory`, and what is no smaller in model and picture than something,
    packed alike, that already took longer than `budget_s`.
    """
    slow: list[Choice] = []
    for choice in choices:
        hopeless = any(choice.no_less_than(one) and choice.bits == one.bits for one in slow)
        if choice.bytes > memory or hopeless:
            yield choice, None
            continue
        point = Point(choice, *measure(choice))
        if point.ttft_s > budget_s:
            slow.append(choice)
        yield choice, point


def on_front(point: Point, points: Sequence[Point]) -> bool:
    """No other is as fast with a language model and a picture at least as large."""
    return not any(
        other.ttft_s <= point.ttft_s and other.choice.no_less_than(point.choice)
        for other in points
        if (other.ttft_s, other.choice.worth) != (point.ttft_s, point.choice.worth)
    )


def recommended(points: Sequence[Point], budget_s: float) -> Point | None:
    """Of those in time.

    First the picture, up to the size that the models were trained and judged at, since a larger language
    model does not read what is not seen; then the language model, what is beyond that size, and the bits.
    """

    def worth(one: Point) -> tuple[float, ...]:
        model, size = one.choice.worth
        return min(size, ACCURACY_SIZE), model, size, one.choice.bits or 16, -one.ttft_s

    return max((point for point in points if point.ttft_s <= budget_s), key=worth, default=None)


def table(
    found: Sequence[tuple[Choice, Point | None]], budget_s: float, memory: float, machine: Machine
) -> Table:
    points = [point for _, point in found if point]
    best = recommended(points, budget_s)
    rows = []
    for choice, point in found:
        front = "" if point is None or not on_front(point, points) else "front"
        rows.append(
            (
                *(choice.variant, choice.weights, str(choice.size), str(cost.tokens(choice.size))),
                f"{choice.bytes / 1e9:.2f}",
                *((ms(point.vision_s), ms(point.prefill_s), ms(point.ttft_s)) if point else ("", "", "")),
                f"{point.accuracy:.1f}" if point and point.accuracy else "",
                front,
                _verdict(choice, point, budget_s, memory, best),
            )
        )
    heads = ("model", "weights", "px", "picture tokens", "GB", "vision ms", "prefill ms", "TTFT ms")
    asked = f"{1e3 * budget_s:g} ms and {memory / 1e9:.1f} GB on {machine.chip} ({machine.device})"
    told = (
        f"Recommended for {asked}: nothing; give more --ttft or --memory."
        if best is None
        else f"Recommended for {asked}: {best.choice.variant}, {best.choice.weights}, {best.choice.size} px: "
        f"{1e3 * best.ttft_s:.0f} ms, about {best.choice.bytes / 1e9:.2f} GB."
    )
    return Table(
        "Plan",
        (*heads, "accuracy", "front", ""),
        rows,
        (
            told,
            "Medians with random weights of true size. Recommended: the largest picture in time up to the "
            f"{ACCURACY_SIZE} px of training, then the largest language model, then the most bits. Accuracy: "
            "mean of the ten benchmarks the paper publishes, of floats at that size. GB: estimated. Front: "
            "none is faster with as large a picture and language model.",
        ),
    )


def _verdict(choice: Choice, point: Point | None, budget_s: float, memory: float, best: Point | None) -> str:
    if point is None:
        return "too large" if choice.bytes > memory else "slower than one too slow"
    if point == best:
        return "recommended"
    return "in time" if point.ttft_s <= budget_s else "too slow"


def choices(
    variants: Sequence[str], bits: Sequence[int | None], sizes: Sequence[int], width: int
) -> list[Choice]:
    """Small models first, small pictures first."""
    room = min(VARIANTS[variant].text.context for variant in variants) - POSITIONS
    if cost.tokens(max(sizes)) > room:
        raise ConfigError(
            f"{max(sizes)} px make {cost.tokens(max(sizes))} positions, and beside text and an answer the "
            f"models have room for {room}; give smaller --sizes"
        )
    return [
        Choice(variant, packing, size, _held(variant, packing, size, width))
        for variant in variants
        for packing in bits
        for size in sorted(sizes)
    ]


def _held(variant: str, bits: int | None, size: int, width: int) -> int:
    packed = Quantization(bits, 64) if bits else None
    return cost.held(VARIANTS[variant], size, POSITIONS, width, packed).bytes
