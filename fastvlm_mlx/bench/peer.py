"""Another program with a model's own weights: its answer is compared first, then its times."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from ..errors import CheckpointError, ConfigError
from ..inference import generate
from ..inputs.prompt import Prompt
from ..inputs.tiling import ImageOptions
from ..vlm import VLM
from .measure import QUESTION, Case, Run, Timed, picture
from .report import median
from .table import Table, ms

ANSWER = 32  # greedy tokens to compare


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    how: str  # what of it runs, for the note
    timed: Timed
    answer: Callable[[Prompt], Sequence[int]]  # ANSWER greedy tokens about `picture()`, asked as ours is
    versions: Mapping[str, str]
    image_mode: str | None = None  # that both read pictures in; None: ours for both

    def case(self, size: int) -> Case:
        return Case(size, 1, image_mode=self.image_mode)


def require(name: str, packages: Sequence[str], install: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"{name}: {package} is not installed; run {install}")


def versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # on the path, but not installed
            found[package] = "unknown"
    return found


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many greedy tokens are the same before the first that differs."""

    same: int
    of: int


def agreement(ours: VLM, theirs: Peer, size: int) -> Agreement:
    asked = ours.prompt(QUESTION, [picture()], options=ImageOptions(size, theirs.image_mode))
    first, second = answer(ours, asked), theirs.answer(asked)
    same = next((n for n, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1]), ANSWER)
    if not same:
        raise CheckpointError(
            f"{theirs.name} answers differently from the first token on, so its times are not compared; "
            "run `fastvlm-mlx doctor` on the model"
        )
    return Agreement(same, ANSWER)


def answer(vlm: VLM, prompt: Prompt) -> tuple[int, ...]:
    [told] = generate.answer_batch(
        vlm.model, vlm.tokenizer, [prompt], stop_ids=(), context=vlm.config.text.context, max_tokens=ANSWER
    )
    return told.ids


_ROWS = {
    "vision": "vision_s",
    "projector": "projector_s",
    "prefill": "prefill_s",
    "to the first token": "ttft_s",
    "decode": "decode_s",
}


@dataclass(frozen=True, slots=True)
class Compared:
    size: int
    part: str
    ours_s: float
    theirs_s: float

    @property
    def ratio(self) -> float:
        return self.theirs_s / self.ours_s


def compare(size: int, ours: Sequence[Run], theirs: Sequence[Run]) -> list[Compared]:
    return [
        Compared(size, part, median(ours, name), median(theirs, name))
        for part, name in _ROWS.items()
        if ours and theirs
    ]


def table(rows: Sequence[Compared], agreed: Agreement, peer: Peer, tokens: int) -> Table:
    told = [(str(row.size), row.part, ms(row.ours_s), ms(row.theirs_s), f"{row.ratio:.2f}×") for row in rows]
    packages = ", ".join(f"{name} {number}" for name, number in peer.versions.items())
    return Table(
        f"Against {peer.name}",
        ("px", "part", "ours ms", f"{peer.name} ms", "theirs ÷ ours"),
        told,
        (
            f"The same weights, picture and question; the first {agreed.same} of {agreed.of} greedy tokens "
            f"are the same. Medians in turn after a warm-up, {peer.how} ({packages}); decode is of "
            f"{tokens} tokens.",
        ),
    )
