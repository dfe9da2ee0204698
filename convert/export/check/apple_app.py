"""`export --check` of what Apple's FastVLM app reads: its folder, and the Core ML package alone.

Headers and neighbouring files are read, no values. Sizes are checked against config.json's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....config import IMAGE_MARK, STRIDE
from ....errors import ConfigError
from ....files.atomic import TOWER_PACKAGE
from ....models.coreml_tower import FEATURES, INPUT
from ...doctor.inspect import Report, Seen, listed, optional
from ...read.tensor_shapes import differences
from .. import coreml_program
from . import swift
from .requirements import APP_FILES, APP_KEYS, CONFIG
from .swift import Said

PROCESSOR = "LlavaProcessor"
AGAIN = "export the checkpoint again with `fastvlm-mlx export --target apple-app`"
AGAIN_PACKAGE = "export it again with `fastvlm-mlx export`, --target apple-app or coreml"
ASSERTED = (1, 256, 3072)  # what the app as Apple wrote it takes from the tower
FLOAT32 = 65568  # Core ML's number for it


def judge(seen: Seen) -> Report:
    """Adds to what `inspect.look` found."""
    for subject, fine, check in (
        ("files", "all there, and nothing that does not belong", _files),
        ("keys", f"{len(APP_KEYS)} keys as they are decoded", _keys),
        ("tokens", f"{IMAGE_MARK} is a token, and config.json has its id", _tokens),
        ("tensors", "every name and shape as required", _tensors),
        ("types", "one type of floats", swift.types),
        ("quantization", "as the app can read it", swift.packing),
        ("vision tower", "takes and gives what the app asserts", _tower),
    ):
        seen.attempt(subject, swift.judged, seen, subject, fine, check)
    facts = package_facts(seen.directory) if not seen.has_problem() else {}
    return Report(seen.directory, seen.layout.name if seen.layout else None, facts, tuple(seen.findings))


def check_package(directory: Path) -> Report:
    """Of a directory that holds the package alone."""
    seen = Seen(directory)
    seen.attempt("package", swift.judged, seen, "package", "takes and gives what is expected", _package)
    facts = package_facts(directory) if not seen.has_problem() else {}
    return Report(directory, "coreml", facts, tuple(seen.findings))


def package_facts(directory: Path) -> dict[str, str]:
    try:
        inputs, outputs = signature(directory)
    except ConfigError:
        return {}
    size = sum(path.stat().st_size for path in (directory / TOWER_PACKAGE).rglob("*") if path.is_file())
    return {
        "takes": ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in inputs.items()),
        "gives": ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in outputs.items()),
        TOWER_PACKAGE: f"{size / 1e6:,.1f} MB",
    }


Signature = dict[str, tuple[int, ...]]


def signature(directory: Path) -> tuple[Signature, Signature]:
    """Names and shapes of what a package takes and gives."""
    described = coreml_program.description(directory / TOWER_PACKAGE)

    def shapes(features: Any) -> Signature:
        return {one.name: tuple(map(int, one.type.multiArrayType.shape)) for one in features}

    return shapes(described.input), shapes(described.output)


def _files(seen: Seen) -> Said:
    for name in APP_FILES:
        if not seen.file(name).exists():
            yield "problem", f"{name} is not there", AGAIN
    yield from swift.strays(seen)


def _keys(seen: Seen) -> Said:
    yield from swift.wrong_keys(seen, APP_FILES, APP_KEYS, "Apple's app")


def _tokens(seen: Seen) -> Said:
    config, tokenizer = seen.config or {}, optional(seen.file("tokenizer.json"))
    added = tokenizer.get("added_tokens")
    ids: list[int] = [
        one["id"]
        for one in added or []
        if isinstance(one, Mapping) and one.get("content") == IMAGE_MARK and type(one.get("id")) is int
    ]
    if not ids:
        yield "problem", f"{IMAGE_MARK} is not among the added tokens of tokenizer.json", AGAIN
        return
    index = config.get("image_token_index")
    if index != ids[0]:
        what = f"image_token_index is {index!r}, and {IMAGE_MARK} is {ids[0]}"
        yield "problem", what, f"set it to {ids[0]} in {CONFIG}"
    elif seen.text is not None and ids[0] >= seen.text.vocab_size:
        what = f"{IMAGE_MARK} is {ids[0]}, and the embedding has {seen.text.vocab_size} rows"
        yield "problem", what, "export a checkpoint with a padded vocabulary"


def _tensors(seen: Seen) -> Said:
    layout = seen.layout
    if layout is None or seen.expected is None or seen.text is None:
        return
    if seen.unruled:
        yield "problem", f"the app has no place for {listed(seen.unruled)}", AGAIN
    different = differences(seen.found, seen.expected, tied=False)
    for names, what in (
        (different.missing, "missing"),
        (different.extra, "too many"),
        (different.wrong, "of another shape"),
    ):
        if names:
            yield "problem", f"{what}: {listed(layout.stored_name(name) for name in names)}", AGAIN


def _tower(seen: Seen) -> Said:
    yield from _package(seen)
    if not seen.file(TOWER_PACKAGE).exists() or seen.has_problem("vision tower"):
        return
    try:
        inputs, outputs = signature(seen.directory)
    except ConfigError:
        return  # told already
    size, found = inputs.get(INPUT, (0,))[-1], outputs.get(FEATURES)
    if found is None:
        yield "problem", f"it gives {', '.join(outputs)}, not {FEATURES}", AGAIN
    elif size != seen.size:
        yield "problem", f"made for {size} px, and preprocessor_config.json says {seen.size} px", AGAIN
    elif found[-1] != (seen.config or {}).get("mm_hidden_size"):
        yield "problem", f"gives {found[-1]} features, and mm_hidden_size says otherwise", AGAIN
    elif found != ASSERTED:
        shape = ", ".join(map(str, found))
        what = f"gives [{shape}]; the app as Apple wrote it asserts [{', '.join(map(str, ASSERTED))}]"
        yield "note", what, f"write [{shape}] in its FastVLM.swift, or export with --image-size 1024"


def _package(seen: Seen) -> Said:
    if not seen.file(TOWER_PACKAGE).exists():
        yield "problem", f"{TOWER_PACKAGE} is not there", AGAIN_PACKAGE
        return
    try:
        described = coreml_program.description(seen.file(TOWER_PACKAGE))
    except ConfigError as error:
        yield "note", f"not looked into: {error}", "install it to have the package checked"
        return
    found = {
        one.name: (tuple(one.type.multiArrayType.shape), one.type.multiArrayType.dataType)
        for one in (*described.input, *described.output)
    }
    shape, _ = found.get(INPUT, ((), 0))
    side = shape[-1] if shape else 0
    if shape != (1, 3, side, side) or side % STRIDE or not side:
        yield "problem", f"{INPUT} 1×3×R×R belongs in, and there is {listed(found)}", AGAIN_PACKAGE
    for name in (FEATURES, coreml_program.EMBEDDINGS):
        if name in found and found[name][0][:2] != (1, (side // STRIDE) ** 2):
            yield "problem", f"{name} is {found[name][0]}, not (1, {(side // STRIDE) ** 2}, …)", AGAIN_PACKAGE
    odd = [name for name, (_, kind) in found.items() if kind != FLOAT32]
    if odd:
        yield "problem", f"not float32: {', '.join(odd)}", AGAIN_PACKAGE
    if not {FEATURES, coreml_program.EMBEDDINGS} & found.keys():
        yield "problem", f"neither {FEATURES} nor {coreml_program.EMBEDDINGS} comes out", AGAIN_PACKAGE
