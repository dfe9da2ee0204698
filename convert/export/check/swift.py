"""Will mlx-swift-lm and mlx-vlm load a directory, and if not, what is the repair?

Headers and neighbouring files alone are read. Sizes are checked by translating the directory as `load` does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx

from ....weights import tensorfile
from ...doctor.inspect import FLOATS, Finding, Level, Report, Seen, listed, optional
from ...read.tensor_names import MLX_VLM
from ...read.translate import translate
from ..swift_files import CHAT_TEMPLATE
from . import device_memory
from .requirements import CONFIG, FILES, KEYS, TENSORS, TOKENIZER, Key

AGAIN = "export the checkpoint again with `fastvlm-mlx export --target swift`"
TEMPLATE = "chat_template.jinja"
BITS, GROUP_SIZE = (4, 8), 64

Said = Iterator[tuple[Level, str, str]]  # level, what, repair


def judge(seen: Seen) -> Report:
    """Adds to what `inspect.look` found."""
    for subject, fine, check in CHECKS:
        seen.attempt(subject, judged, seen, subject, fine, check)
    if not seen.has_problem():
        seen.attempt("sizes", translate, seen.directory)
    facts = device_memory.facts(seen) if not seen.has_problem() else {}
    return Report(seen.directory, seen.layout.name if seen.layout else None, facts, tuple(seen.findings))


def judged(seen: Seen, subject: str, fine: str, check: Callable[[Seen], Said]) -> None:
    said = [Finding(level, subject, what, repair) for level, what, repair in check(seen)]
    seen.findings += said or [Finding("ok", subject, fine, "")]


def _files(seen: Seen) -> Said:
    for name in FILES:
        if not seen.file(name).is_file():
            yield "problem", f"{name} is not there", AGAIN
    yield from strays(seen)


def strays(seen: Seen) -> Said:
    kept = set(seen.files)
    others = sorted(path for path in seen.directory.rglob("*.safetensors") if path not in kept)
    if others:
        names = ", ".join(seen.name(path) for path in others)
        what = f"{names}: mlx-swift-lm loads every *.safetensors it finds, "
        yield "problem", what + "in subfolders too", "move them out"
    for path in seen.files:
        if (said := tensorfile.read_metadata(path).get("format")) != "mlx":
            what = f"{seen.name(path)} says format {said!r}: mlx-vlm then turns its convolutions once more"
            yield "problem", what, AGAIN


def _keys(seen: Seen) -> Said:
    yield from wrong_keys(seen, FILES, KEYS, "mlx-swift-lm")


def wrong_keys(seen: Seen, files: Sequence[str], keys: Sequence[Key], reader: str) -> Said:
    bodies = {name: optional(seen.file(name)) for name in files if seen.file(name).is_file()}
    gone: set[tuple[str, str]] = set()
    for file, key, rule in keys:
        if file not in bodies:
            continue  # told already
        section, _, last = key.rpartition(".")
        body: Any = bodies[file].get(section) if section else bodies[file]
        if not isinstance(body, Mapping) or not body:
            if (file, section) not in gone:
                gone.add((file, section))
                yield (
                    "problem",
                    f"{section} is missing or empty in {file}; {reader} reads all of it",
                    AGAIN,
                )
        elif not rule.holds(body.get(last)):
            found = repr(body[last]) if last in body else "missing"
            yield "problem", f"{key} is {found}, and {rule.says} belongs there", f"correct it in {file}"


def _template(seen: Seen) -> Said:
    file = seen.file(TEMPLATE)
    template = optional(seen.file(TOKENIZER)).get("chat_template")
    if template is None and file.is_file():
        template = file.read_text(encoding="utf-8", errors="replace")
    if template == CHAT_TEMPLATE:
        return
    if not isinstance(template, str):
        yield "problem", f"no chat_template in {TOKENIZER}", AGAIN
    elif "is string" not in template:
        what = "the chat_template does not tell string content (mlx-vlm) from lists of parts (mlx-swift-lm)"
        yield "problem", what, AGAIN


def _names(seen: Seen) -> Said:
    patterns = [(re.compile(name), shape) for name, shape in TENSORS]
    unknown, turned = [], []
    for name, info in seen.stored.items():
        fitting = [shape for pattern, shape in patterns if pattern.fullmatch(name)]
        if not fitting:
            unknown.append(name)
        elif not any(
            len(shape) == len(info.shape)
            and all(wanted in (None, found) for wanted, found in zip(shape, info.shape, strict=True))
            for shape in fitting
        ):
            turned.append(name)
    if unknown:
        yield (
            "problem",
            f"{len(unknown)} tensor(s) that mlx-swift-lm has no place for: {listed(unknown)}",
            AGAIN,
        )
    if turned:
        what = f"{len(turned)} tensor(s) of another shape (convolutions are out, height, width, in): "
        yield "problem", what + listed(turned), AGAIN
    if f"{MLX_VLM.tower}head.proj" not in seen.stored:
        what = f"{MLX_VLM.tower}head.proj is missing: no one runs it, and mlx-swift-lm asks for it"
        yield "problem", what, AGAIN
    tied, head = (
        (seen.config or {}).get("tie_word_embeddings"),
        "language_model.lm_head.weight" in seen.stored,
    )
    if tied is head:
        said = "true, and lm_head is there" if head else "false, and lm_head is missing"
        yield "problem", f"tie_word_embeddings is {said}", f"set it to {str(not head).lower()} in {CONFIG}"


def types(seen: Seen) -> Said:
    packed = {name.removesuffix(".scales") for name in seen.stored if name.endswith(".scales")}
    floats, odd = set(), []
    for name, info in seen.stored.items():
        if name.removesuffix(".weight") in packed and name.endswith(".weight"):
            odd += [name] * (info.dtype != mx.uint32)
        elif info.dtype in FLOATS:
            floats.add(str(info.dtype).rpartition(".")[2])
        else:
            odd.append(name)
    if odd:
        yield "problem", f"{len(odd)} tensor(s) of a type that does not belong there: {listed(odd)}", AGAIN
    if len(floats) > 1:
        yield "note", f"floats of several types: {', '.join(sorted(floats))}", "export again to have one"


def packing(seen: Seen) -> Said:
    packed = {name.removesuffix(".scales") for name in seen.stored if name.endswith(".scales")}
    said = (seen.config or {}).get("quantization")
    if not packed:
        if said:
            yield "problem", "quantization is said, and no tensor is packed", f"remove it from {CONFIG}"
        return
    if not isinstance(said, Mapping) or said.get("bits") not in BITS or said.get("group_size") != GROUP_SIZE:
        what = f"quantization is {said!r}; group_size {GROUP_SIZE} and 4 or 8 bits belong there"
        yield "problem", what, AGAIN
    elif said.get("mode", "affine") != "affine":
        yield "problem", f"quantization mode is {said['mode']!r}, not affine", AGAIN
    pictures = [path for path in packed if not path.startswith("language_model.")]
    if pictures:
        yield "problem", f"packed, where mlx-swift-lm wants floats: {listed(pictures)}", AGAIN
    layers = range(seen.text.layers if seen.text else 0)
    dense = [
        f"language_model.model.layers.{n}."
        for n in layers
        if not any(path.startswith(f"language_model.model.layers.{n}.") for path in packed)
    ]
    if dense:
        yield "problem", f"no packed matrix in {listed(dense)}; mlx-swift-lm wants one in every layer", AGAIN


def _tokens(seen: Seen) -> Said:
    eos = (seen.config or {}).get("eos_token_id")
    if seen.tokenizer is not None and type(eos) is int:
        end = seen.tokenizer.id_of("<|im_end|>")
        if end is not None and eos != end:
            yield "problem", f"eos_token_id is {eos}, and <|im_end|> is {end}", f"set it to {end} in {CONFIG}"


# (subject, what to say when there is nothing to say, check)
CHECKS: tuple[tuple[str, str, Callable[[Seen], Said]], ...] = (
    ("files", "all there, and nothing that does not belong", _files),
    ("keys", f"{len(KEYS)} keys as they are decoded", _keys),
    ("chat template", "serves text and lists of parts alike", _template),
    ("tokens", "answers end with <|im_end|>", _tokens),
    ("tensors", "every name and kind of shape as required", _names),
    ("types", "one type of floats", types),
    ("quantization", "as both can read it", packing),
)
