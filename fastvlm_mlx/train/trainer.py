"""The training loop: stages one after another, saved every so often, resumed exactly.

Several processes under MLX's launcher divide every batch and add up their gradients.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Protocol

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from ..convert.fuse.reference import STATISTICS
from ..errors import ConfigError
from .batches import Batch, Share
from .recipe import Plan, Stage
from .state import Logged, Progress, State

_MOMENTUM = 0.1  # of a batch's statistics in the running ones
_AHEAD = 4  # batches being made, per worker


class Source(Protocol):
    def batch(self, stage: Any, number: int, step: int, share: Share) -> Batch: ...


# From a stage (of the plan's own kind), all parameters and a batch: the loss, and measures by name.
# BatchNorm's statistics may be among them, under their own names.
Loss = Callable[[Any, Mapping[str, mx.array], Batch], tuple[mx.array, dict[str, mx.array]]]


def train(
    recipe: Plan,
    loss_of: Loss,
    state: State,
    source: Source,
    *,
    workers: int = 0,
    until_s: float | None = None,
    on_log: Callable[[Logged], None] = lambda logged: None,
) -> State:
    """Run what is left of the recipe. `until_s` stops after so many seconds, with everything saved."""
    group = mx.distributed.init()
    share = Share(group.rank(), group.size())
    deadline = None if until_s is None else time.monotonic() + until_s
    while state.progress.stage < len(recipe.stages):
        stage = recipe.stages[state.progress.stage]
        state = _run_stage(recipe, stage, loss_of, state, source, share, workers, deadline, on_log)
        if state.progress.step < stage.steps:
            break
        state = state.next_stage()
        if share.rank == 0:
            state.save()
    return state


def _run_stage(
    recipe: Plan,
    stage: Stage,
    loss_of: Loss,
    state: State,
    source: Source,
    share: Share,
    workers: int,
    deadline: float | None,
    on_log: Callable[[Logged], None],
) -> State:
    number, first = state.progress.stage, state.progress.step
    params = dict(state.params)
    vector = Vector.of(params, moving(params, stage))
    optimizer = optim.Adam(schedule(stage), betas=[0.9, 0.98], bias_correction=True)
    optimizer.init({"all": vector.values})
    if state.moments and first:
        optimizer.state = _nested(state.moments)
    decays = mx.concatenate(
        [mx.full((vector.size(name),), float(params[name].ndim > 1)) for name in vector.names]
    )

    def loss(moved: dict[str, mx.array], batch: Batch) -> tuple[mx.array, dict[str, mx.array]]:
        return loss_of(stage, {**params, **moved}, batch)

    gradient_of = mx.value_and_grad(loss)
    window: list[tuple[mx.array, mx.array, dict[str, mx.array]]] = []
    began = time.perf_counter()
    step = first
    with _batches(source, stage, number, first, share, workers) as batches:
        for step, batch in enumerate(batches, first + 1):
            mx.random.seed(_seed(recipe.seed, number, step, share.rank))  # dropout's
            (value, found), gradients = gradient_of(vector.split(), batch)
            statistics = {name: found.pop(name) for name in list(found) if name.endswith(STATISTICS)}
            for name, seen in _mean_of_each(statistics, share).items():
                params[name] = (1 - _MOMENTUM) * params[name] + _MOMENTUM * seen
            gradient = _mean(vector.join(gradients), share)
            norm = mx.sqrt((gradient * gradient).sum())
            gradient = gradient * mx.minimum(1.0, stage.clip / (norm + 1e-6))
            rate = optimizer.learning_rate
            decayed = vector.values * (1 - rate * stage.weight_decay * decays)
            vector = vector.with_values(optimizer.apply_gradients({"all": gradient}, {"all": decayed})["all"])
            mx.eval(
                vector.values,
                optimizer.state,
                value,
                norm,
                found,
                [params[name] for name in statistics],
            )
            window.append((value, norm, found))
            last = step == stage.steps
            late = deadline is not None and time.monotonic() > deadline
            late = _any(late, share) if deadline is not None else late
            if last or late or step % recipe.log_every == 0:
                logged = _summary(
                    stage, step, window, optimizer, (time.perf_counter() - began) / len(window), share
                )
                if share.rank == 0:
                    state.log(logged)
                    on_log(logged)
                window, began = [], time.perf_counter()
            if last or late or step % recipe.save_every == 0:
                state = state.at(Progress(number, step), {**params, **vector.split()}, _flat(optimizer.state))
                if share.rank == 0 and not last:  # the next stage's beginning is saved then
                    state.save()
            if late:
                break
    return state


def _seed(*place: int) -> int:
    """The same after a resume."""
    return int(np.random.SeedSequence(place).generate_state(1)[0])


def moving(params: Mapping[str, mx.array], stage: Stage) -> list[str]:
    """The names that this stage trains; statistics never move by gradients."""
    patterns = [re.compile(pattern) for pattern in stage.train]
    names = [
        name
        for name in sorted(params)
        if any(pattern.match(name) for pattern in patterns) and not name.endswith(STATISTICS)
    ]
    if not names:
        raise ConfigError(
            f"stage {stage.name!r}: no tensor matches train = {list(stage.train)}; mend the recipe"
        )
    return names


def schedule(stage: Stage) -> Callable[[mx.array], mx.array]:
    """Linear warm-up, then a cosine to `last_rate`."""
    warm = max(1, round(stage.warmup * stage.steps))
    rise = optim.linear_schedule(stage.rate / warm, stage.rate, warm)
    fall = optim.cosine_decay(stage.rate, max(1, stage.steps - warm), stage.rate * stage.last_rate)
    return optim.join_schedules([rise, fall], [warm])


@dataclass(frozen=True)
class Vector:
    """Many tensors as one: an optimizer's few operations then cost nothing, and so does adding up."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    values: mx.array

    @classmethod
    def of(cls, params: Mapping[str, mx.array], names: Sequence[str]) -> Vector:
        values = mx.concatenate([params[name].astype(mx.float32).flatten() for name in names])
        return cls(tuple(names), tuple(tuple(params[name].shape) for name in names), values)

    def with_values(self, values: mx.array) -> Vector:
        return Vector(self.names, self.shapes, values)

    def size(self, name: str) -> int:
        return math.prod(self.shapes[self.names.index(name)])

    def split(self) -> dict[str, mx.array]:
        ends: list[int] = []
        for shape in self.shapes:
            ends.append((ends[-1] if ends else 0) + math.prod(shape))
        parts = mx.split(self.values, ends[:-1])
        return {
            name: part.reshape(shape)
            for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    def join(self, tensors: Mapping[str, mx.array]) -> mx.array:
        return mx.concatenate([tensors[name].flatten() for name in self.names])


@contextmanager
def _batches(
    source: Source, stage: Stage, number: int, first: int, share: Share, workers: int
) -> Iterator[Iterator[Batch]]:
    steps = range(first, stage.steps)
    if not workers:
        yield (source.batch(stage, number, step, share) for step in steps)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:

        def ahead() -> Iterator[Batch]:
            waiting: list[Future[Batch]] = []
            for step in steps:
                waiting.append(pool.submit(source.batch, stage, number, step, share))
                if len(waiting) > _AHEAD * workers:
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()

        try:
            yield ahead()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _mean(array: mx.array, share: Share) -> mx.array:
    return array if share.ranks == 1 else mx.distributed.all_sum(array) / share.ranks


def _mean_of_each(tensors: Mapping[str, mx.array], share: Share) -> Mapping[str, mx.array]:
    """Sent as one: many small messages would cost more than their contents."""
    if share.ranks == 1 or not tensors:
        return tensors
    packed = Vector.of(tensors, list(tensors))
    return packed.with_values(_mean(packed.values, share)).split()


def _any(flag: bool, share: Share) -> bool:
    """The same for every process, so that all stop at the same step."""
    return _mean(mx.array(float(flag)), share).item() != 0


def _summary(
    stage: Stage,
    step: int,
    window: list[tuple[mx.array, mx.array, dict[str, mx.array]]],
    optimizer: optim.Optimizer,
    s_per_step: float,
    share: Share,
) -> Logged:
    def mean(values: list[mx.array]) -> float:
        return round(float(np.array(_mean(mx.stack(values).mean(), share))), 5)

    values, norms, measures = zip(*window, strict=True)
    return Logged(
        stage.name,
        step,
        stage.steps,
        mean(list(values)),
        round(float(np.array(optimizer.learning_rate)), 8),
        mean(list(norms)),
        round(s_per_step, 4),
        {name: mean([found[name] for found in measures]) for name in measures[0]},
    )


def _flat(state: Mapping[str, Any]) -> dict[str, mx.array]:
    moments = {f"all.{name}": array for name, array in state["all"].items()}
    return moments | {name: array for name, array in state.items() if isinstance(array, mx.array)}


def _nested(flat: Mapping[str, mx.array]) -> dict[str, Any]:
    nested: dict[str, Any] = {name: array for name, array in flat.items() if not name.startswith("all.")}
    nested["all"] = {
        name.removeprefix("all."): array for name, array in flat.items() if name.startswith("all.")
    }
    return nested
