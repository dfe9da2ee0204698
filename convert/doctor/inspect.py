"""What can be had from a model directory, whatever its state: files, configuration, tokenizer, values.

Nothing is judged here, except that what cannot be read at all is a problem. `checks` judges.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import mlx.core as mx
import numpy as np
import tokenizers

from ...config import Quantization, TextConfig, VisionConfig, from_json, is_canonical, read_json
from ...errors import FastVLMError
from ...inputs.tokenizer import Tokenizer
from ...models.fastvlm import FastVLM
from ...weights import checkpoint, tensorfile
from ...weights.tensorfile import TensorInfo
from ..read import source_config, tensor_shapes
from ..read.tensor_names import Layout, detect
from ..read.tensor_shapes import Shapes

Level = Literal["ok", "note", "problem"]
P = ParamSpec("P")
T = TypeVar("T")

AGAIN = "download the checkpoint again"
CANONICAL = Layout("fastvlm-mlx", "projector.", "vision.", channels_first=False, rows=(("{any}", "{any}"),))
FLOATS = tuple(checkpoint.DTYPES.values())
SECTIONS = ("text_config", "vision_config", "quantization", "quantization_config", "rope_parameters")
# What a JSON value of the wrong kind makes of code that expects another: a diagnosis, not a crash.
ODD = (FastVLMError, ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError)


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
class Values:
    finite: bool
    peak: float
    digest: bytes | None  # of the embedding and the head, to compare them without holding both


@dataclass(slots=True)
class Seen:
    """What the checks look at. None = could not be had, and `findings` says why."""

    directory: Path
    findings: list[Finding] = field(default_factory=list)
    config: Mapping[str, Any] | None = None
    theirs: Mapping[str, Any] | None = None  # the same, unless the directory is one of ours
    files: list[Path] = field(default_factory=list)
    stored: dict[str, TensorInfo] = field(default_factory=dict)
    homes: dict[str, str] = field(default_factory=dict)  # stored name -> file
    layout: Layout | None = None
    raw: dict[str, str] = field(default_factory=dict)  # raw name -> stored name
    found: Shapes = field(default_factory=dict)  # by raw name
    unruled: list[str] = field(default_factory=list)
    tokenizer: Tokenizer | None = None
    vision: VisionConfig | None = None
    text: TextConfig | None = None
    size: int | None = None
    stops: tuple[int, ...] | None = None
    expected: Shapes | None = None  # by raw name
    packed: dict[str, Quantization] = field(default_factory=dict)
    values: dict[str, Values] | None = None  # by stored name

    def file(self, name: str) -> Path:
        return self.directory / name

    def name(self, path: Path) -> str:
        return os.path.relpath(path, self.directory)

    def has_problem(self, subject: str = "") -> bool:
        return any(one.level == "problem" and subject in ("", one.subject) for one in self.findings)

    def problem(self, subject: str, what: str, repair: str) -> None:
        self.findings.append(Finding("problem", subject, what, repair))

    def attempt(self, subject: str, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """The action's result; what it raises is a problem."""
        try:
            return action(*args, **kwargs)
        except ODD as error:
            self.problem(subject, *told(error, subject, self.directory))
            return None


def told(error: Exception, subject: str, directory: Path) -> tuple[str, str]:
    """What, and the repair. Our errors say "where: what; repair" already."""
    if not isinstance(error, FastVLMError):
        what = f"a value of the wrong kind: {type(error).__name__} ({error})"
        return what, f"compare {subject} with the original checkpoint's"
    text = str(error).replace(f"{directory}/", "").removeprefix(f"{directory}: ")
    what, _, repair = text.rpartition("; " if "; " in text else ". ")
    return (what, repair) if what else (text, AGAIN)


def look(directory: Path) -> Seen:
    seen = Seen(directory)
    file = seen.file(checkpoint.CONFIG)
    seen.config = seen.attempt("config.json", read_json, file)
    ours = seen.config is not None and is_canonical(seen.config)
    if seen.config is not None and not ours:
        odd = {k: v for k, v in seen.config.items() if k in SECTIONS and not isinstance(v, Mapping | None)}
        for key, value in sorted(odd.items()):
            what = f"{key} is {value!r}, and an object belongs there"
            seen.problem("config.json", what, f"correct {key} in config.json, or take the original's")
        seen.theirs = {key: value for key, value in seen.config.items() if key not in odd}
        seen.attempt("config.json", source_config.check_model_type, seen.theirs, file)

    seen.files = _files(seen)
    for path in seen.files:
        header = seen.attempt("weights", tensorfile.read_header, path) or {}
        if twice := seen.stored.keys() & header.keys():
            others = ", ".join(sorted({seen.homes[key] for key in twice}))
            what = f"{seen.name(path)} and {others} both hold {listed(twice)}"
            seen.problem("weights", what, "remove the file that is not of this model")
        seen.stored |= header
        seen.homes |= dict.fromkeys(header, seen.name(path))
    seen.tokenizer = seen.attempt("tokenizer", Tokenizer.load, directory)
    if ours:
        seen.layout = CANONICAL
    elif seen.stored:
        seen.layout = seen.attempt("layout", detect, seen.stored, directory)
    if seen.layout is not None:
        _sort(seen, seen.layout)
        if ours:
            seen.attempt("config.json", _look_at_ours, seen, seen.config or {})
        elif seen.theirs is not None:
            seen.attempt("config.json", _look_at_theirs, seen, seen.theirs)
    return seen


def _files(seen: Seen) -> list[Path]:
    """Unlike `checkpoint.weight_files`, what is there although something else is not."""
    try:
        return checkpoint.weight_files(seen.directory)
    except FastVLMError as error:
        named = optional(seen.file(checkpoint.INDEX)).get("weight_map")
        names = sorted(set(map(str, named.values()))) if isinstance(named, Mapping) else []
        absent = [name for name in names if not seen.file(name).exists()]
        what, repair = told(error, "weights", seen.directory)
        if absent:
            gone = ", ".join(absent)
            what = f"{checkpoint.INDEX} names {len(names)} files, and these are not there: {gone}"
            repair = f"download {gone} again"
        seen.problem("weights", what, repair)
        return [seen.file(name) for name in names if name not in absent]


def optional(path: Path) -> dict[str, Any]:
    """A neighbour of config.json; whether it must be there and be readable is said elsewhere."""
    try:
        return read_json(path)
    except FastVLMError:
        return {}


def _sort(seen: Seen, layout: Layout) -> None:
    for key, info in seen.stored.items():
        try:
            name = layout.raw_name(key)
        except KeyError:
            seen.unruled.append(key)
        else:
            if name is not None:
                seen.raw[name], seen.found[name] = key, turned(info.shape, layout)


def turned(shape: tuple[int, ...], layout: Layout, back: bool = False) -> tuple[int, ...]:
    """A stored shape as NHWC, or `back`."""
    if not layout.channels_first or len(shape) != 4:
        return shape
    a, b, c, d = shape
    return (a, d, b, c) if back else (a, c, d, b)


def _look_at_ours(seen: Seen, raw: Mapping[str, Any]) -> None:
    config = from_json(raw, seen.file(checkpoint.CONFIG))
    seen.vision, seen.text, seen.size = config.vision, config.text, config.image.size
    seen.stops, seen.packed = config.eos_token_ids, dict(config.quantization)
    model = checkpoint.parameters(FastVLM(config))
    seen.expected = {name: tuple(array.shape) for name, array in model.items()}


def _look_at_theirs(seen: Seen, config: Mapping[str, Any]) -> None:
    file, found, directory = seen.file(checkpoint.CONFIG), seen.found, seen.directory
    # Only its length limit counts here, and a missing tokenizer has been reported.
    tokenizer = seen.tokenizer or Tokenizer(0, None, None, tokenizers.Tokenizer(tokenizers.models.BPE()), {})
    rows = found.get(
        "language.embedding.weight", (source_config.text_section(config).get("vocab_size") or 1,)
    )[0]
    head = "language.head.weight" in found
    seen.text = seen.attempt("config.json", source_config.text_config, config, file, tokenizer, rows, head)
    image = seen.attempt("pictures", source_config.image_config, config, directory)
    seen.size = image.size if image else None
    seen.vision = tensor_shapes.tower(
        found, seen.attempt("config.json", source_config.multi_scale, config, file)
    )
    if seen.tokenizer is not None:
        seen.stops = seen.attempt("stop tokens", source_config.eos_token_ids, config, directory, tokenizer)
    if seen.text is not None:
        width = config.get("mm_hidden_size", 3072)
        seen.expected = seen.attempt("tensors", tensor_shapes.raw_form, seen.vision, width, seen.text, found)
        seen.packed = tensor_shapes.pack(seen.expected or {}, found, config.get("quantization") or {})


def read(seen: Seen, progress: Callable[[int, int], None]) -> dict[str, Values]:
    """By stored name, one tensor in memory at a time."""
    total = sum(info.nbytes for info in seen.stored.values() if info.dtype in FLOATS)
    both = {seen.raw.get(f"language.{part}.weight") for part in ("embedding", "head")}
    values: dict[str, Values] = {}
    done = 0
    for path in seen.files:
        if seen.name(path) not in seen.homes.values():
            continue  # damaged, and reported
        arrays = tensorfile.lazy_arrays(path)
        for name in list(arrays):
            array = arrays.pop(name)
            finite, peak = True, 1.0
            with mx.stream(mx.cpu):
                if array.dtype in FLOATS and array.size:
                    ends = (mx.isfinite(array).all(), array.max(), array.min())
                    mx.eval(ends)
                    finite, peak = bool(ends[0].item()), max(abs(end.item()) for end in ends[1:])
                    done += array.nbytes
                    progress(done, total)
                values[name] = Values(finite, peak, _digest(array) if name in both else None)
            del array
            mx.clear_cache()
    return values


def _digest(array: mx.array) -> bytes:
    return hashlib.sha256(np.array(array.reshape(-1).view(mx.uint8), copy=False).data).digest()


def facts(seen: Seen) -> dict[str, str]:
    """What the directory is, in words; what could not be had is left out."""
    types: Counter[str] = Counter()
    count = 0
    for name, shape in seen.found.items():
        info = seen.stored[seen.raw[name]]
        base, _, part = name.rpartition(".")
        if info.dtype in FLOATS:
            types[str(info.dtype).rpartition(".")[2]] += info.nbytes
        idle = base == "language.head" and seen.text is not None and seen.text.tied
        if part not in ("scales", "biases", "running_mean", "running_var") and not idle:
            bits = seen.packed[base].bits if base in seen.packed and part == "weight" else 32
            count += math.prod(shape) * 32 // bits
    branch = re.compile(r"vision\..*\.(kxk|scale|skip|large|small|mixer\.mixer)\.")
    trained = any(branch.match(name) for name in seen.found)
    size = sum(path.stat().st_size for path in seen.directory.rglob("*") if path.is_file())
    lines = {
        "layout": seen.layout.name if seen.layout else "",
        "model type": str((seen.config or {}).get("model_type", "")),
        "form": ("training branches" if trained else "fused") if seen.vision else "",
        "parameters": f"{count:,}" if count else "",
        "weights": ", ".join(kind for kind, _ in types.most_common()),
        "quantization": (packing(seen) or "none") if seen.layout else "",
        "picture size": f"{seen.size} px" if seen.size else "",
        "size on disk": f"{size / 1e6:,.1f} MB",
    }
    if (vision := seen.vision) is not None:
        scales = f", multi-scale: {vision.multi_scale.listed}" if vision.multi_scale else ""
        lines["vision"] = f"layers {list(vision.layers)}, dims {list(vision.dims)}{scales}"
    if (text := seen.text) is not None:
        lines["text"] = f"{text.layers} layers, hidden {text.hidden_size}, heads {text.heads}/{text.kv_heads}"
        usable = f", {seen.tokenizer.size} ids usable" if seen.tokenizer else ""
        lines["vocabulary"] = f"{text.vocab_size} rows{usable}"
        lines["output head"] = "tied to the embedding" if text.tied else "its own"
    if seen.stops and (tokenizer := seen.tokenizer) is not None:
        lines["stop tokens"] = ", ".join(f"{id} {tokenizer.decode([id], False)}" for id in seen.stops)
    return {key: value for key, value in lines.items() if value}


def packing(seen: Seen) -> str:
    counts = Counter(f"{how.bits} bits, groups of {how.group_size}" for how in seen.packed.values())
    return "; ".join(f"{how}: {count} modules" for how, count in sorted(counts.items()))


def listed(names: Iterable[str]) -> str:
    return "; ".join(folded(names))


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
