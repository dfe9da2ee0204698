"""What a model directory holds, what is wrong with it, and the repair. Reads only; the one who acts is you.

A *problem* will not load here, or answers wrongly; a *note* loads here, but others break on it. What is
gathered once (`_look`) is judged by a table of checks (`CHECKS`). That no check speaks is not trusted: a
directory without problems has been translated in full. Not covered: whether the answers are any good.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import mlx.core as mx
import numpy as np
import tokenizers

from .. import checkpoint, tensorfile
from ..config import (
    BITS,
    GROUP_SIZES,
    ModelConfig,
    Quantization,
    TextConfig,
    VisionConfig,
    from_json,
    is_canonical,
    read_json,
)
from ..errors import CheckpointError, FastVLMError
from ..models.fastvlm import FastVLM
from ..tensorfile import TensorInfo
from ..tokenizer import Tokenizer
from . import foreign
from .fuse import STAGES
from .layouts import APPLE_APP, MLX_VLM, Layout, detect
from .translate import translate

Level = Literal["ok", "note", "problem"]
Shapes = dict[str, tuple[int, ...]]
T = TypeVar("T")

ORIGINALS = {896: "apple/FastVLM-0.5B", 1536: "apple/FastVLM-1.5B", 3584: "apple/FastVLM-7B"}
AGAIN = "download the checkpoint again"
CANONICAL = Layout("fastvlm-mlx", "projector.", "vision.", channels_first=False, rows=(("{any}", "{any}"),))
FLOATS = (mx.float16, mx.bfloat16, mx.float32)
FLOAT16_MAX = 65504.0
_BRANCHES = ("kxk", "scale", "skip", "large", "small", "conv", "mixer", "norm", "layer_scale")
# What a JSON value of the wrong kind makes of code that expects another: a diagnosis, not a crash.
_ODD = (FastVLMError, ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    subject: str
    what: str
    repair: str


@dataclass(frozen=True, slots=True)
class Report:
    directory: Path
    layout: str | None
    facts: dict[str, str]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        return not any(finding.level == "problem" for finding in self.findings)


@dataclass(frozen=True, slots=True)
class _Values:
    finite: bool
    peak: float
    digest: bytes | None  # of the embedding and the head, to compare them without holding both


@dataclass(slots=True)
class _Seen:
    """What the checks look at. None = could not be had, and `trouble` says why."""

    directory: Path
    trouble: list[Finding] = field(default_factory=list)
    config: Mapping[str, Any] | None = None
    theirs: Mapping[str, Any] | None = None  # the same, unless the directory is one of ours
    files: list[Path] = field(default_factory=list)
    stored: dict[str, TensorInfo] = field(default_factory=dict)
    homes: dict[str, str] = field(default_factory=dict)  # stored name -> file
    layout: Layout | None = None
    unruled: list[str] = field(default_factory=list)
    raw: dict[str, str] | None = None  # raw name -> stored name
    tokenizer: Tokenizer | None = None
    vision: VisionConfig | None = None
    text: TextConfig | None = None
    size: int | None = None
    stops: tuple[int, ...] | None = None
    expected: Shapes | None = None  # by raw name
    packed: dict[str, Quantization] = field(default_factory=dict)
    values: dict[str, _Values] | None = None

    def file(self, name: str) -> Path:
        return self.directory / name

    def shapes(self) -> Shapes:
        return {name: self.turned(self.stored[key].shape) for name, key in (self.raw or {}).items()}

    def turned(self, shape: tuple[int, ...], back: bool = False) -> tuple[int, ...]:
        """A stored shape as NHWC, or `back`."""
        if self.layout is None or not self.layout.channels_first or len(shape) != 4:
            return shape
        a, b, c, d = shape
        return (a, d, b, c) if back else (a, c, d, b)

    def attempt(self, subject: str, action: Callable[[], T]) -> T | None:
        """The action's result; what it raises is a problem."""
        try:
            return action()
        except _ODD as error:
            self.trouble.append(_told(error, subject, self.directory))
            return None


def examine(
    directory: Path,
    *,
    read_weights: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """`progress` counts bytes of weights read, and is not called without `read_weights`."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: not a directory; give a model directory")
    seen = _look(directory)
    if read_weights:
        seen.values = seen.attempt("values", lambda: _read(seen, progress))
    findings = list(seen.trouble)
    for subject, needs, fine, check in CHECKS:
        if any(getattr(seen, need) is None for need in needs):
            continue
        try:
            findings += [Finding(level, subject, what, repair) for level, what, repair in check(seen)]
        except _ODD as error:
            findings.append(_told(error, subject, directory))
        if not any(finding.subject == subject for finding in findings):
            findings.append(Finding("ok", subject, fine, ""))
    if not any(finding.level == "problem" for finding in findings):
        try:
            _load(seen)
        except _ODD as error:
            findings.append(_told(error, "loading", directory))
    order = [row[0] for row in CHECKS]
    findings.sort(key=lambda one: order.index(one.subject) if one.subject in order else len(order))
    return Report(directory, seen.layout.name if seen.layout else None, _facts(seen), tuple(findings))


def folded(names: Iterable[str]) -> list[str]:
    """`l.0.a l.1.a l.3.a b` -> `b l.{0-1,3}.a`: short, and nothing is left out."""
    items = sorted(tuple(re.split(r"(?<=\.)(\d+)(?=\.)", name)) for name in set(names))
    for place in reversed(range(1, max(map(len, items), default=0), 2)):
        alike: dict[tuple[str, ...], list[str]] = {}
        for item in items:
            here = item[place : place + 1]
            alike.setdefault((*item[:place], "", *item[place + 1 :]) if here else item, []).extend(here)
        items = [
            (*key[:place], _runs(here), *key[place + 1 :]) if here else key for key, here in alike.items()
        ]
    return sorted("".join(item) for item in items)


def _runs(numbers: list[str]) -> str:
    if len(numbers) == 1:
        return numbers[0]
    runs: list[list[int]] = []
    for number in sorted(map(int, numbers)):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "{" + ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) + "}"


def _told(error: Exception, subject: str, directory: Path) -> Finding:
    """Our errors say "where: what; repair" already."""
    if not isinstance(error, FastVLMError):
        what = f"a value of the wrong kind: {type(error).__name__} ({error})"
        return Finding("problem", subject, what, f"compare {subject} with the original checkpoint's")
    text = str(error).replace(f"{directory}/", "").removeprefix(f"{directory}: ")
    what, split, repair = text.rpartition("; ")
    if not split:
        what, split, repair = text.rpartition(". ")
    return Finding("problem", subject, what or text, repair if split else AGAIN)


# --- gathering


def _look(directory: Path) -> _Seen:
    seen = _Seen(directory)
    file = directory / checkpoint.CONFIG
    seen.config = seen.attempt("config.json", lambda: read_json(file))
    ours = seen.config is not None and is_canonical(seen.config)
    if seen.config is not None and not ours:
        seen.theirs = {k: v for k, v in seen.config.items() if not _misplaced(k, v)}
        for key in sorted(seen.config.keys() - seen.theirs.keys()):
            what = f"{key} is {seen.config[key]!r}, and an object belongs there"
            repair = f"correct {key} in config.json, or take the original's"
            seen.trouble.append(Finding("problem", "config.json", what, repair))
        seen.attempt("config.json", lambda: foreign.check_model_type(seen.theirs or {}, file))

    seen.files = _files(seen)
    for path in seen.files:
        header = seen.attempt("weights", lambda path=path: tensorfile.read_header(path)) or {}  # type: ignore[misc]
        if twice := seen.stored.keys() & header.keys():
            others = ", ".join(sorted({seen.homes[key] for key in twice}))
            what = f"{_name(seen, path)} and {others} both hold {'; '.join(folded(twice))}"
            seen.trouble.append(
                Finding("problem", "weights", what, "remove the file that is not of this model")
            )
        seen.stored |= header
        seen.homes |= dict.fromkeys(header, _name(seen, path))
    seen.tokenizer = seen.attempt("tokenizer", lambda: Tokenizer.load(directory))
    if ours:
        seen.layout = CANONICAL
    elif seen.stored:
        seen.layout = seen.attempt("layout", lambda: detect(seen.stored, directory))
    if seen.layout is not None:
        _sort(seen, seen.layout)
        if ours:
            _look_at_ours(seen)
        elif seen.theirs is not None:
            theirs = seen.theirs
            seen.attempt("config.json", lambda: _look_at_theirs(seen, theirs))
    return seen


def _misplaced(key: str, value: object) -> bool:
    sections = ("text_config", "vision_config", "quantization", "quantization_config", "rope_parameters")
    return key in sections and not isinstance(value, Mapping | None)


def _name(seen: _Seen, path: Path) -> str:
    return os.path.relpath(path, seen.directory)


def _files(seen: _Seen) -> list[Path]:
    """Unlike `checkpoint.weight_files`, what is there although something else is not."""
    try:
        return checkpoint.weight_files(seen.directory)
    except FastVLMError as error:
        index = seen.file(checkpoint.INDEX)
        named = _optional(index).get("weight_map")
        names = sorted({str(name) for name in named.values()}) if isinstance(named, Mapping) else []
        absent = [name for name in names if not seen.file(name).exists()]
        if absent:
            what = f"{index.name} names {len(names)} files, and these are not there: {', '.join(absent)}"
            seen.trouble.append(Finding("problem", "weights", what, f"download {', '.join(absent)} again"))
        else:
            seen.trouble.append(_told(error, "weights", seen.directory))
        return [seen.file(name) for name in names if name not in absent]


def _optional(path: Path) -> dict[str, Any]:
    """A neighbour of config.json; whether it must be there and be readable is said elsewhere."""
    try:
        return read_json(path)
    except FastVLMError:
        return {}


def _sort(seen: _Seen, layout: Layout) -> None:
    seen.raw = {}
    for key in seen.stored:
        try:
            name = layout.raw_name(key)
        except KeyError:
            seen.unruled.append(key)
        else:
            seen.raw |= {name: key} if name is not None else {}


def _look_at_ours(seen: _Seen) -> None:
    config = seen.attempt("config.json", lambda: from_json(seen.config or {}, seen.file(checkpoint.CONFIG)))
    if config is not None:
        model = seen.attempt("config.json", lambda: checkpoint.parameters(FastVLM(config)))
        seen.vision, seen.text, seen.size = config.vision, config.text, config.image.size
        seen.stops, seen.packed = config.eos_token_ids, dict(config.quantization)
        seen.expected = {name: tuple(array.shape) for name, array in model.items()} if model else None


def _look_at_theirs(seen: _Seen, config: Mapping[str, Any]) -> None:
    file, found, directory = seen.file(checkpoint.CONFIG), seen.shapes(), seen.directory
    # Only its length limit counts here, and a missing tokenizer has been reported.
    tokenizer = seen.tokenizer or Tokenizer(0, None, None, tokenizers.Tokenizer(tokenizers.models.BPE()), {})
    rows = found.get("language.embedding.weight", (foreign.text_section(config).get("vocab_size") or 1,))[0]
    head = "language.head.weight" in found
    seen.text = seen.attempt(
        "config.json", lambda: foreign.text_config(config, file, tokenizer, rows, stored_head=head)
    )
    image = seen.attempt("pictures", lambda: foreign.image_config(config, directory))
    seen.size = image.size if image else None
    seen.vision = _vision(found)
    if seen.tokenizer is not None:
        seen.stops = seen.attempt("stop tokens", lambda: foreign.eos_token_ids(config, directory, tokenizer))
    if seen.text is not None:
        text = seen.text
        seen.expected = seen.attempt("tensors", lambda: _raw_form(seen, text, found))
        _pack(seen, found, config.get("quantization") or {})


def _read(seen: _Seen, progress: Callable[[int, int], None]) -> dict[str, _Values]:
    """By stored name, one tensor in memory at a time."""
    total = sum(info.nbytes for info in seen.stored.values() if info.dtype in FLOATS)
    both = {(seen.raw or {}).get(f"language.{part}.weight") for part in ("embedding", "head")}
    values: dict[str, _Values] = {}
    done = 0
    for path in seen.files:
        if _name(seen, path) not in seen.homes.values():
            continue  # damaged, and reported
        arrays = tensorfile.lazy_arrays(path)
        for name in list(arrays):
            array = arrays.pop(name)
            if array.dtype in FLOATS and array.size:
                with mx.stream(mx.cpu):
                    finite, high, low = mx.isfinite(array).all(), array.max(), array.min()
                    mx.eval(finite, high, low)
                peak = max(abs(high.item()), abs(low.item()))
                values[name] = _Values(bool(finite.item()), peak, _digest(array) if name in both else None)
                done += array.nbytes
                progress(done, total)
            elif name in both:
                values[name] = _Values(True, 1.0, _digest(array))
            del array
            mx.clear_cache()
    return values


def _digest(array: mx.array) -> bytes:
    with mx.stream(mx.cpu):
        return hashlib.sha256(np.array(array.reshape(-1).view(mx.uint8), copy=False).data).digest()


# --- the raw form: the run form's parameters taken apart again, as far as this checkpoint still has branches


def _raw_form(seen: _Seen, text: TextConfig, found: Shapes) -> Shapes:
    # Without a tower only what the projector expects of it counts.
    features = (seen.theirs or {}).get("mm_hidden_size", 3072)
    vision = seen.vision or VisionConfig((1,) * STAGES, (features // 2,) * STAGES)
    parts = {name[: dot.start()] for name in found for dot in re.finditer(r"\.|$", name)}
    rows = {"q": text.hidden_size, "k": text.kv_heads * text.head_dim, "v": text.kv_heads * text.head_dim}
    shapes: Shapes = {}
    for name, array in checkpoint.parameters(FastVLM(ModelConfig(vision, text))).items():
        shape: tuple[int, ...] = array.shape
        base, _, part = name.rpartition(".")
        if not name.startswith("vision."):
            path, _, last = base.rpartition(".")
            if last == "qkv":
                shapes |= {f"{path}.{x}.{part}": (count, *shape[1:]) for x, count in rows.items()}
            elif last == "gate_up":
                shapes |= {f"{path}.{x}.{part}": (text.intermediate_size, *shape[1:]) for x in ("gate", "up")}
            else:
                shapes[name] = shape
        elif seen.vision and part == "weight":
            shapes |= _apart(base, shape, parts)
    return shapes


def _apart(base: str, shape: tuple[int, ...], parts: set[str]) -> Shapes:
    width = shape[0]
    block, _, last = base.rpartition(".")
    if last == "qkv":  # the norm is inside it, and its bias made of the norm's
        return {f"{base}.weight": shape} | _affine(f"{block.rpartition('.')[0]}.norm", shape[1])
    if last == "proj":
        scales = {f"{block.rpartition('.')[0]}.layer_scale_{n}": (width,) for n in (1, 2)}
        return scales | _affine(base, *shape)
    if base.endswith("ffn.depthwise"):
        return _folded(base, *shape)
    scale = {f"{block}.layer_scale": (width,)} if last == "mixer" else {}
    branches = {part for part in _BRANCHES if f"{base}.{part}" in parts}
    if f"{base}.weight" in parts or not branches:
        return scale | _affine(base, *shape)
    if last == "position":
        return _affine(f"{base}.conv", *shape)
    if branches & {"large", "small"}:
        return _folded(f"{base}.large", *shape) | _folded(f"{base}.small", width, 3, 3, 1)
    if last == "mixer":
        inner = _mobile_one(f"{base}.mixer", shape, parts, {"scale", "skip"})
        return scale | inner | _norm(f"{base}.norm.skip", width) | {f"{base}.layer_scale": (width,)}
    always = {"skip"} if last == "pointwise" else {"scale"} if base == "vision.expand.depthwise" else set()
    return _mobile_one(base, shape, parts, always)


def _mobile_one(name: str, shape: tuple[int, ...], parts: set[str], always: set[str]) -> Shapes:
    has = always | {part for part in ("scale", "skip") if f"{name}.{part}" in parts}
    count = next(n for n in range(1, len(parts) + 2) if f"{name}.kxk.{n}" not in parts)
    shapes: Shapes = {}
    for branch in range(count):
        shapes |= _folded(f"{name}.kxk.{branch}", *shape)
    shapes |= _folded(f"{name}.scale", shape[0], 1, 1, shape[-1]) if "scale" in has else {}
    return shapes | (_norm(f"{name}.skip", shape[0]) if "skip" in has else {})


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}


def _affine(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _folded(name: str, *shape: int) -> Shapes:
    return {f"{name}.conv.weight": shape} | _norm(f"{name}.bn", shape[0])


def _vision(found: Shapes) -> VisionConfig | None:
    """What most tensors say, so that a damaged one is reported rather than believed."""
    depths, attending = [0] * STAGES, {STAGES}
    votes: dict[str, Counter[int]] = {}
    for name, shape in found.items():
        if match := re.match(r"vision\.stages\.([0-4])\.blocks\.(\d+)\.(attention|mixer|ffn\.\w+)?", name):
            stage, block, part = int(match[1]), int(match[2]), match[3]
            depths[stage] = max(depths[stage], block + 1)
            attending |= {stage} if part == "attention" else set()
            name = f"{stage}.{part}"
        if shape:
            votes.setdefault(name, Counter())[shape[0]] += 1
    if not any(name.startswith("vision.") for name in found):
        return None

    def most(name: str, otherwise: int) -> int:
        return max(1, votes[name].most_common(1)[0][0]) if name in votes else otherwise

    dims: list[int] = []
    for stage in range(STAGES):
        dims.append(most(f"{stage}.ffn.depthwise", 2 * dims[-1] if dims else 96))
    narrow = most("vision.expand.squeeze.bias", most("vision.expand.squeeze.weight", 2 * dims[-1] // 16))
    return VisionConfig(
        tuple(max(1, depth) for depth in depths),
        tuple(dims),
        max(1, most("0.ffn.fc1", 4 * dims[0]) // dims[0]),
        min(attending),
        squeeze=max(1, 2 * dims[-1] // max(1, narrow)),
    )


def _pack(seen: _Seen, found: Shapes, said: Mapping[str, Any]) -> None:
    """The shapes of what is stored quantized, in place of the dense ones."""
    expected = seen.expected or {}
    for name in [name for name in found if name.endswith(".scales")]:
        base = name.removesuffix(".scales")
        if base == "language.head":  # also when tied, for the report's sake
            expected.setdefault(f"{base}.weight", expected["language.embedding.weight"])
        shape, words = expected.get(f"{base}.weight"), found.get(f"{base}.weight")
        if shape is None or len(shape) != 2 or not found[name] or not found[name][-1]:
            continue
        rows, width = shape
        bits, group = words[-1] * 32 // width if words else 0, width // found[name][-1]
        if bits not in BITS or group not in GROUP_SIZES:
            bits, group = said.get("bits", 4), said.get("group_size", 64)
        seen.packed[base] = Quantization(bits, group)
        expected[f"{base}.weight"] = (rows, width * bits // 32)
        sides = [side for side in ("scales", "biases") if f"{base}.{side}" in found]  # else: another mode
        expected |= {f"{base}.{side}": (rows, width // group) for side in sides}


# --- judging: a check yields (level, what, repair)

Said = Iterator[tuple[Level, str, str]]


def _config_notes(seen: _Seen) -> Said:
    config, mlx_vlm = seen.theirs or {}, seen.layout is MLX_VLM
    index, eos = config.get("image_token_index"), config.get("eos_token_id")
    if mlx_vlm and isinstance(index, int) and index >= 0:
        what = f"image_token_index is {index}: mlx-vlm silently drops the picture unless it is negative"
        yield "note", what, "set image_token_index to -200 in config.json"
    if mlx_vlm and isinstance(eos, list):
        what = f"eos_token_id is the list {eos}: mlx-swift-lm wants one number"
        yield "note", what, "keep the id of <|im_end|> in config.json and the list in generation_config.json"


def _weights(seen: _Seen) -> Said:
    strays = sorted(set(seen.directory.rglob("*.safetensors")) - set(seen.files))
    if strays:
        what = f"not of this model: {', '.join(_name(seen, path) for path in strays)}"
        yield (
            "note",
            f"{what}; mlx-swift-lm loads every *.safetensors it finds, in subfolders too",
            "move them out",
        )
    named = _optional(seen.file(checkpoint.INDEX)).get("weight_map")
    if isinstance(named, Mapping) and not any(one.subject == "weights" for one in seen.trouble):
        wrong = {key for key in {**named, **seen.homes} if named.get(key) != seen.homes.get(key)}
        if wrong:
            what = f"{checkpoint.INDEX} and the files disagree about {'; '.join(folded(wrong))}"
            yield "note", f"{what}; transformers goes by the index", f"correct or remove {checkpoint.INDEX}"


def _original(seen: _Seen) -> str:
    return ORIGINALS.get(seen.text.hidden_size if seen.text else 0, ", ".join(ORIGINALS.values()))


def _layout(seen: _Seen) -> Said:
    if seen.layout is APPLE_APP:
        there = "is here, but " if seen.file("fastvithd.mlpackage").exists() else "is missing too, and "
        what = (
            "an export for Apple's app: no vision tower among the tensors. Its Core ML package "
            f"fastvithd.mlpackage {there}it cannot be read back"
        )
        yield "problem", what, f"use the checkpoint it was made from: {_original(seen)}"
    elif not any(name.startswith("vision.") for name in seen.raw or {}):
        what = f"the vision tower is missing: no tensor begins with {seen.layout and seen.layout.tower}"
        yield "problem", what, f"use the original checkpoint: {_original(seen)}"


def _tensors(seen: _Seen) -> Said:
    """Skipped, beyond keys without a rule, while a file is missing or damaged: all of it would be listed."""
    assert seen.layout is not None
    if seen.unruled:
        what = f"{len(seen.unruled)} tensor(s) without a rule in {seen.layout.name}: "
        repair = (
            "upgrade fastvlm-mlx if the checkpoint is newer; remove what training left (merge LoRA first)"
        )
        yield "problem", what + "; ".join(folded(seen.unruled)), repair
    if seen.expected is None or any(one.subject == "weights" for one in seen.trouble):
        return
    found, stored_name = seen.shapes(), seen.layout.stored_name
    missing = [name for name in seen.expected.keys() - found.keys() if seen.vision or name[:7] != "vision."]
    if missing:
        what = f"{len(missing)} tensor(s) missing: " + "; ".join(folded(map(stored_name, missing)))
        yield "problem", what, f"{AGAIN}, or correct the number of layers in config.json"
    unused = ("language.head.",) if seen.text and seen.text.tied and seen.theirs is not None else ()
    extra = [name for name in found.keys() - seen.expected.keys() if not name.startswith(unused)]
    extra = [name for name in extra if not name.endswith(".biases") or f"{name[:-7]}.scales" not in found]
    if extra:
        what = f"{len(extra)} tensor(s) without a place in the model: " + "; ".join(
            folded(map(stored_name, extra))
        )
        yield "problem", what, "correct the number of layers in config.json, or remove the tensors"
    wrong: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    for name in found.keys() & seen.expected.keys():
        if not _same(name, found[name], seen.expected[name]):
            key = (seen.raw or {})[name]
            shapes = (seen.stored[key].shape, seen.turned(seen.expected[name], back=True))
            wrong.setdefault(shapes, []).append(key)
    for (is_, should), keys in sorted(wrong.items()):
        what = f"{'; '.join(folded(keys))}: shape {is_}, expected {should}"
        yield "problem", what, f"{AGAIN}, or correct the sizes in config.json"


def _same(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """A matrix may be stored as a 1×1 convolution, and a scale in any orientation."""
    if len(expected) == 2 or name.rpartition(".")[2].startswith("layer_scale"):
        return [n for n in found if n != 1] == [n for n in expected if n != 1]
    return found == expected


def _vision_config(seen: _Seen) -> Said:
    config, file = seen.theirs or {}, seen.file(checkpoint.CONFIG)
    if not config.get("vision_config"):
        what = "vision_config is missing or empty: mlx-vlm assumes the full FastViTHD, mlx-swift-lm refuses"
        yield "note", what, "convert to a complete directory with `fastvlm-mlx convert`"
    elif seen.vision is not None:
        try:
            foreign.check_vision(config, seen.vision, file)
        except FastVLMError as error:
            told = _told(error, "", seen.directory)
            yield "problem", told.what, f"{told.repair}; if blocks of the tower are missing, {AGAIN}"


def _head(seen: _Seen) -> Said:
    config, raw = seen.theirs or {}, seen.raw or {}
    key = "tie_word_embeddings"
    said = [s.get(key) for s in (foreign.text_section(config), config) if s.get(key) is not None]
    head = raw.get("language.head.weight")
    if not said:
        what = f"{key} is absent: transformers then takes false, mlx-vlm true"
        yield "note", what, f'add "{key}": {str(head is None).lower()} to config.json'
    elif said[0] != said[-1]:
        what = f"{key} is {said[-1]} at the top and {said[0]} in text_config, which counts here"
        yield "note", what, "let both say the same"
    if said and not said[0] and head is None:
        what = f"{key} is false without a stored head: taken as tied here, refused or random elsewhere"
        yield "note", what, f"set {key} to true in config.json"
    if said and said[0] and head is not None:
        embedding = raw.get("language.embedding.weight", "")
        pair = [(seen.values or {}).get(name) for name in (head, embedding)]
        if None in pair:
            what = f"{key} is true, and {head} is stored too; not compared with {embedding}"
            yield "note", f"{what}, and ignored", "examine with the weights read"
        elif pair[0] and pair[1] and pair[0].digest != pair[1].digest:
            what = f"{key} is true, and a different {head} is stored: ignored here, as by the reference"
            yield "note", what, f"remove {head}; if it was trained, set {key} to false"


def _pictures(seen: _Seen) -> Said:
    file = seen.file("preprocessor_config.json")
    kind = _optional(file).get("processor_class")
    if not file.exists():
        what = f"{file.name} is missing: the size, {seen.size} px, is taken from elsewhere"
        yield "note", what, f"copy {file.name} from the original checkpoint"
    elif seen.layout is MLX_VLM and kind != "FastVLMProcessor":
        what = f"{file.name}: processor_class is {kind!r}, which mlx-swift-lm refuses"
        yield "note", what, "set processor_class to FastVLMProcessor"


def _tokenizer(seen: _Seen) -> Said:
    rows = seen.text.vocab_size if seen.text else None
    if seen.tokenizer and rows is not None and seen.tokenizer.size > rows:
        what = f"the tokenizer has {seen.tokenizer.size} ids, and the embedding {rows} rows"
        yield "problem", what, "take the tokenizer's files and the weights from the same checkpoint"
    if seen.tokenizer and not seen.file("tokenizer.json").exists():
        what = "tokenizer.json is missing: Swift needs it, vocab.json and merges.txt serve here"
        yield "note", what, "save it with transformers' AutoTokenizer, or convert with `fastvlm-mlx convert`"
    files = (seen.file("chat_template.jinja"), seen.file("chat_template.json"))
    template = _optional(seen.file("tokenizer_config.json")).get("chat_template")
    if seen.theirs is not None and not template and not any(file.exists() for file in files):
        what = "no chat_template: other tools cannot build the prompt"
        yield "note", what, "copy chat_template from the original's tokenizer_config.json"


def _stops(seen: _Seen) -> Said:
    rows = seen.text.vocab_size if seen.text else None
    if not seen.stops:
        yield "problem", "eos_token_ids is empty: answers would never end", "convert the checkpoint again"
    beyond = [stop for stop in seen.stops or () if rows is not None and not 0 <= stop < rows]
    if beyond:
        what = f"stop token(s) {beyond} beyond the {rows} rows of the embedding can never come"
        yield "note", what, "correct eos_token_id in config.json and generation_config.json"


def _generation(seen: _Seen) -> Said:
    settings = _optional(seen.file("generation_config.json"))
    penalty = settings.get("repetition_penalty")
    told = [f"repetition_penalty {penalty}"] if penalty not in (None, 1) else []
    told += [f"do_sample with temperature {settings.get('temperature')}"] if settings.get("do_sample") else []
    if told:
        what = f"generation_config.json has {' and '.join(told)}: ignored here, applied by transformers"
        yield "note", what, "to compare with transformers, pass do_sample=False, repetition_penalty=1.0 there"


def _quantization(seen: _Seen) -> Said:
    config, found, raw = seen.theirs or {}, seen.shapes(), seen.raw or {}
    said = config.get("quantization") or config.get("quantization_config") or {}
    modes = {part.get("mode", "affine") for part in (said, *said.values()) if isinstance(part, Mapping)}
    bare = [n for n in raw if n.endswith(".scales") and f"{n[:-7]}.biases" not in found]
    if seen.theirs is not None and (modes - {"affine"} or bare):
        names = f": no biases beside {'; '.join(folded(raw[name] for name in bare))}" if bare else ""
        what = f"quantization mode {', '.join(sorted(modes - {'affine'})) or 'unknown'}, not affine{names}"
        yield "problem", what, "quantize the original checkpoint again, mode affine"
    if seen.theirs is not None and seen.packed and not said:
        what = "tensors are quantized, and config.json has no quantization: others cannot load them"
        yield "note", what, f'add "quantization" with group_size and bits to config.json: {_packing(seen)}'
    if seen.layout is MLX_VLM and any(name.startswith("projector.") for name in seen.packed):
        what = "the projector is quantized: mlx-swift-lm crashes on it"
        yield (
            "note",
            what,
            "quantize the original with `fastvlm-mlx convert`, which leaves it dense for Swift",
        )


def _packing(seen: _Seen) -> str:
    counts = Counter(f"{how.bits} bits, groups of {how.group_size}" for how in seen.packed.values())
    return "; ".join(f"{how}: {count} modules" for how, count in sorted(counts.items()))


def _values(seen: _Seen) -> Said:
    values, raw = seen.values or {}, seen.raw or {}
    broken = [name for name, one in values.items() if not one.finite]
    if broken:
        what = f"NaN or infinite values in {'; '.join(folded(broken))}"
        yield "problem", what, f"{AGAIN}, or go back to a training state before they appeared"
    weights = [key for name, key in raw.items() if re.fullmatch(r"language\..*\.(weight|scales)", name)]
    zero = [key for key in weights if key in values and values[key].finite and not values[key].peak]
    if zero:
        yield "note", f"nothing but zeros in {'; '.join(folded(zero))}", f"{AGAIN}, if it was not meant"
    large = [name for name, one in values.items() if one.finite and one.peak > FLOAT16_MAX]
    if large:
        what = f"values beyond float16's range in {'; '.join(folded(large))}: --dtype float16 would overflow"
        yield "note", what, "compute in bfloat16 or float32"


def _licence(seen: _Seen) -> Said:
    if not any(seen.directory.glob("LICEN[SC]E*")):
        what = "no LICENSE file: Apple's weights are for research only, and the licence must travel along"
        yield "note", what, "copy LICENSE from the original checkpoint"


# subject, what must have been had, what to say when all is well, the check
CHECKS: tuple[tuple[str, tuple[str, ...], str, Callable[[_Seen], Said]], ...] = (
    ("config.json", ("config",), "readable, and says what FastVLM needs", _config_notes),
    ("weights", (), "every file whole, no tensor twice", _weights),
    ("layout", ("raw",), "one layout, with its vision tower", _layout),
    ("tensors", ("raw",), "every name has a rule, none is missing, all shapes fit", _tensors),
    ("vision_config", ("theirs", "raw"), "says what the tensors say", _vision_config),
    ("output head", ("theirs", "raw"), "config.json and the tensors agree whether it is tied", _head),
    ("pictures", ("theirs",), "preprocessor_config.json is FastVLM's", _pictures),
    ("tokenizer", (), "complete, and the embedding has a row for every id", _tokenizer),
    ("stop tokens", ("stops",), "answers end", _stops),
    ("generation", (), "no sampling settings that others would apply", _generation),
    ("quantization", ("raw",), "none, or affine", _quantization),
    ("values", ("values",), "finite, not all zero, within float16", _values),
    ("licence", (), "there", _licence),
)


def _load(seen: _Seen) -> None:
    """All that loading does short of reading values."""
    if seen.theirs is not None:
        translate(seen.directory, seen.tokenizer)
    elif seen.config is not None:
        config = from_json(seen.config, seen.file(checkpoint.CONFIG))
        checkpoint.check(config, checkpoint.lazy_weights(seen.directory), seen.directory)


def _facts(seen: _Seen) -> dict[str, str]:
    found, packed, config = seen.shapes(), seen.packed, seen.config or {}
    types: Counter[str] = Counter()
    count = 0
    for name, shape in found.items():
        info = seen.stored[(seen.raw or {})[name]]
        base, _, part = name.rpartition(".")
        if info.dtype in FLOATS:
            types[str(info.dtype).rpartition(".")[2]] += info.nbytes
        idle = base == "language.head" and seen.text is not None and seen.text.tied
        if part not in ("scales", "biases", "running_mean", "running_var") and not idle:
            each = packed[base].bits if base in packed and part == "weight" else 32
            count += int(np.prod(shape, dtype=np.int64)) * 32 // each
    trained = any(
        re.match(r"vision\..*\.(kxk|scale|skip|large|small|mixer\.mixer)\.", name) for name in found
    )
    size = sum(path.stat().st_size for path in seen.directory.rglob("*") if path.is_file())
    facts = {
        "layout": seen.layout.name if seen.layout else "",
        "model type": str(config.get("model_type", "")),
        "form": ("training branches" if trained else "fused") if seen.vision else "",
        "parameters": f"{count:,}" if count else "",
        "weights": ", ".join(kind for kind, _ in types.most_common()),
        "quantization": (_packing(seen) or "none") if seen.raw else "",
        "picture size": f"{seen.size} px" if seen.size else "",
        "size on disk": f"{size / 1e6:,.1f} MB",
    }
    if (vision := seen.vision) is not None:
        facts["vision"] = f"layers {list(vision.layers)}, dims {list(vision.dims)}"
    if (text := seen.text) is not None:
        facts["text"] = f"{text.layers} layers, hidden {text.hidden_size}, heads {text.heads}/{text.kv_heads}"
        usable = f", {seen.tokenizer.size} ids usable" if seen.tokenizer else ""
        facts["vocabulary"] = f"{text.vocab_size} rows{usable}"
        facts["output head"] = "tied to the embedding" if text.tied else "its own"
    if seen.stops and (tokenizer := seen.tokenizer) is not None:
        facts["stop tokens"] = ", ".join(f"{id} {tokenizer.decode([id], False)}" for id in seen.stops)
    return {key: value for key, value in facts.items() if value}
