"""From a recipe with [start] to a model that has learned from a user's data, or to an adapter for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_unflatten

from ..config import ModelConfig
from ..convert import card
from ..convert.run import read as stored
from ..errors import ConfigError
from ..inputs import dataset
from ..inputs.image import check_options
from ..inputs.tokenizer import Tokenizer
from ..models import lora
from ..models.fastvlm import FastVLM
from ..models.lora import Adapter, LoRASettings
from ..weights import checkpoint, hub
from ..weights.checkpoint import FusedWeights, Loaded
from .batches import Batch
from .data import Conversations
from .losses import Measures, conversations
from .recipe import Recipe, Stage
from .report import Report
from .state import Progress, State, make_folder, once, resume, trim_log
from .trainer import moving, train


def finetune(
    recipe: Recipe,
    out: Path,
    *,
    minutes: float | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """Run what is left of the recipe, or as much as fits into `minutes`; says what came of it."""
    start, data = recipe.start, recipe.data
    if start.dtype is not None and start.dtype not in checkpoint.DTYPES:
        raise ConfigError(f"no dtype {start.dtype!r}; choose one of {', '.join(checkpoint.DTYPES)}")
    if not recipe.stages:
        raise ConfigError(f"recipe {recipe.name!r}: no [[stages]]; add one")
    directory = hub.resolve(start.model, start.revision)
    tokenizer = Tokenizer.load(directory)
    _, config, weights = stored(directory, tokenizer)
    path, folder = Path(data.path), None if data.images is None else Path(data.images)
    digest = dataset.digest(path)
    source = Conversations(recipe.seed, path, folder, digest, directory, config.image, config.text.context)
    for stage in recipe.stages:
        check_options(stage.image_size or config.image.size, config.image.mode)
        source.check(stage)

    loaded = checkpoint.load(directory, checkpoint.DTYPES[start.dtype] if start.dtype else None)
    base = checkpoint.fingerprint(loaded.model)
    if recipe.lora:
        lora.attach(loaded.model, recipe.lora, mx.random.key(recipe.seed))
        params = lora.parameters(loaded.model)
    else:
        params = _trainable(recipe, loaded)
    for stage in recipe.stages:
        moving(params, stage)  # says what matches nothing
    fingerprint = _fingerprint(recipe, base, digest)
    make_folder(out)
    state = resume(out, fingerprint)
    if state:
        state = state.at(state.progress, {**params, **state.params}, state.moments)
    else:
        state = State(out, fingerprint, Progress(0, 0), params)
    begun = state
    once(lambda: trim_log(out, [stage.name for stage in recipe.stages], begun.progress))
    types = {name: array.dtype for name, array in checkpoint.parameters(loaded.model).items()}

    def loss(stage: Stage, params: Mapping[str, mx.array], batch: Batch) -> tuple[mx.array, Measures]:
        moved = [(name, array.astype(types[name])) for name, array in params.items()]
        loaded.model.update(tree_unflatten(moved))
        return conversations(loaded.model, batch)

    report = Report(recipe, out, progress, say)
    until_s = None if minutes is None else 60 * minutes
    state = train(recipe, loss, state, source, workers=workers, until_s=until_s, on_log=report)
    if state.progress.stage < len(recipe.stages):
        return f"{out}: stopped at {report.place}; the same command goes on from there"
    if mx.distributed.init().rank() == 0:
        _write(recipe, out, directory, tokenizer, config, weights, state.params)
    if not recipe.lora:
        return f"{out / 'model'}: the model; fastvlm-mlx generate PICTURE -m {out / 'model'}"
    fused = f", and {out / 'fused'}: the model with it added" if recipe.lora.fuse else ""
    use = f"fastvlm-mlx generate PICTURE -m {start.model} --adapter-path {out / 'adapter'}"
    return f"{out / 'adapter'}: the adapter{fused}; {use}"


def fused(config: ModelConfig, weights: FusedWeights, adapter: Adapter) -> FusedWeights:
    """The stored weights with the adapter added in float32, in their own types again.

    Packed matrices are unpacked, added to and packed with the same bits, which rounds a little of the
    adapter away.
    """
    lora.check(adapter, FastVLM(config))
    sums = {
        f"{path}.weight": checkpoint.dequantize_matrix(config, weights, path) + adapter.delta(path)
        for path in adapter.paths
    }
    return checkpoint.replace_tensors(config, weights, sums)


def _trainable(recipe: Recipe, loaded: Loaded) -> dict[str, mx.array]:
    """What any stage moves, in float32, so that small steps are not rounded away."""
    params = checkpoint.parameters(loaded.model)
    names = {name for stage in recipe.stages for name in moving(params, stage)}
    for name in sorted(names):
        if how := loaded.quantization.get(name.rpartition(".")[0]):
            if name.endswith(".bias"):
                continue
            raise ConfigError(
                f"recipe {recipe.name!r}: {name} is packed in {how.bits} bits, which training cannot move; "
                "start from the dense model, or add [lora]"
            )
    return {name: params[name].astype(mx.float32) for name in sorted(names)}


def _write(
    recipe: Recipe,
    out: Path,
    directory: Path,
    tokenizer: Tokenizer,
    config: ModelConfig,
    weights: FusedWeights,
    params: Mapping[str, mx.array],
) -> None:
    weights = checkpoint.cast(weights, checkpoint.stored_dtype(weights))
    if recipe.lora:
        adapter = Adapter(recipe.start.model, _settings(recipe), params)
        lora.write(out / "adapter", adapter)
        if not recipe.lora.fuse:
            return
        weights = fused(config, weights, adapter)
    else:
        weights = checkpoint.replace_tensors(config, weights, params)
    destination = out / ("fused" if recipe.lora else "model")
    checkpoint.save(destination, config, weights, tokenizer, card.licences(directory), overwrite=True)


def _fingerprint(recipe: Recipe, base: str, digest: str) -> str:
    """Stages may be added or changed ahead of a run; base model, data, adapter and seed may not."""
    told = repr(
        (recipe.name, recipe.seed, base, recipe.start.dtype, recipe.lora and _settings(recipe), digest)
    )
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _settings(recipe: Recipe) -> LoRASettings:
    assert recipe.lora
    return LoRASettings(recipe.lora.rank, recipe.lora.alpha, recipe.lora.patterns, recipe.lora.dropout)
