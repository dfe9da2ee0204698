"""What a model directory holds, what is wrong with it, and the repair. Reads only; the one who acts is you.

A *problem* will not load here, or answers wrongly; a *note* loads here, but others break on it. What is
gathered once (`inspect.look`) is judged by a table of checks (`CHECKS`). That no check speaks is not
trusted: a directory without problems has been translated in full. Not covered: whether the answers are
any good.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ... import blas
from ...config import from_json
from ...errors import CheckpointError, FastVLMError
from ...weights import checkpoint
from ..export.check.entry import judge as judge_export
from ..read import source_config
from ..read.tensor_names import APPLE_APP, MLX_VLM
from ..read.tensor_shapes import differences
from ..read.translate import translate
from .inspect import (
    AGAIN,
    Finding,
    Level,
    Report,
    Seen,
    facts,
    listed,
    look,
    optional,
    packing,
    read,
    told,
    turned,
)

__all__ = ["Finding", "Report", "examine", "examine_blas"]

ORIGINALS = {896: "apple/FastVLM-0.5B", 1536: "apple/FastVLM-1.5B", 3584: "apple/FastVLM-7B"}
FLOAT16_MAX = 65504.0

Said = Iterator[tuple[Level, str, str]]  # what a check yields: level, what, repair


def examine(
    directory: Path,
    *,
    read_weights: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """`progress` counts bytes of weights read, and is not called without `read_weights`."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: not a directory; give a model directory")
    seen = look(directory)
    if read_weights:
        seen.values = seen.attempt("values", read, seen, progress)
    for subject, needs, fine, check in CHECKS:
        if all(getattr(seen, need) is not None for need in needs):
            seen.attempt(subject, _judge, seen, subject, fine, check)
    if not seen.has_problem():
        seen.attempt("loading", _load, seen)
    _apps(seen)
    order = [row[0] for row in CHECKS]
    findings = sorted(
        seen.findings, key=lambda one: order.index(one.subject) if one.subject in order else len(order)
    )
    return Report(directory, seen.layout.name if seen.layout else None, facts(seen), tuple(findings))


def examine_blas() -> Iterator[Finding]:
    """What multiplies matrices on the CPU; nothing on a GPU."""
    name = blas.in_use()
    if name is None:
        return
    if blas.loaded() and not blas.multiplies_correctly():
        repair = (
            f"update it, or for OpenBLAS set {blas.CORETYPE} to older kernels (Haswell, Sandybridge, ARMV8)"
        )
        yield Finding("problem", "BLAS", f"{name}: its products are wrong on this processor", repair)
    elif newer := blas.outdated():
        repair = f"unset {blas.CORETYPE}, or set it to {newer}; otherwise update OpenBLAS"
        yield Finding("note", "BLAS", f"{name}: this processor can run newer, faster ones", repair)
    elif sys.platform == "linux" and not blas.loaded():
        repair = "install OpenBLAS (`apt install libopenblas0`) or MKL (`pip install 'fastvlm-mlx[mkl]'`)"
        yield Finding("note", "BLAS", f"{name}: OpenBLAS and MKL are many times faster", repair)
    else:
        yield Finding("ok", "BLAS", name, "")


def _judge(seen: Seen, subject: str, fine: str, check: Callable[[Seen], Said]) -> None:
    seen.findings += [Finding(level, subject, what, repair) for level, what, repair in check(seen)]
    if not any(finding.subject == subject for finding in seen.findings):
        seen.findings.append(Finding("ok", subject, fine, ""))


def _apps(seen: Seen) -> None:
    """Of the layouts that apps read: would they? What they want is a note, since we do without."""
    readers = ((MLX_VLM, "mlx-swift-lm"), (APPLE_APP, "Apple's app"))
    reader = next((name for layout, name in readers if layout is seen.layout), None)
    if reader is None or seen.has_problem("weights"):
        return
    report = judge_export(dataclasses.replace(seen, findings=[]))
    wanting = [one for one in report.findings if one.level == "problem"]
    if wanting:
        more = f" ({len(wanting) - 1} more such)" if len(wanting) > 1 else ""
        what = f"{reader} would not load it: {wanting[0].what}{more}"
        repair = f"`fastvlm-mlx export --check {seen.directory}` lists all with their repairs"
        seen.findings.append(Finding("note", "apps", what, repair))
    else:
        seen.findings.append(Finding("ok", "apps", f"as {reader} requires", ""))


def _load(seen: Seen) -> None:
    """All that loading does short of reading values."""
    if seen.theirs is not None:
        translate(seen.directory, seen.tokenizer)
    elif seen.config is not None:
        config = from_json(seen.config, seen.file(checkpoint.CONFIG))
        checkpoint.check(config, checkpoint.lazy_weights(seen.directory), seen.directory)


def _config_notes(seen: Seen) -> Said:
    config, mlx_vlm = seen.theirs or {}, seen.layout is MLX_VLM
    index, eos = config.get("image_token_index"), config.get("eos_token_id")
    if mlx_vlm and isinstance(index, int) and index >= 0:
        what = f"image_token_index is {index}: mlx-vlm silently drops the picture unless it is negative"
        yield "note", what, "set image_token_index to -200 in config.json"
    if mlx_vlm and isinstance(eos, list):
        what = f"eos_token_id is the list {eos}: mlx-swift-lm wants one number"
        yield "note", what, "keep the id of <|im_end|> in config.json and the list in generation_config.json"


def _weights(seen: Seen) -> Said:
    strays = sorted(set(seen.directory.rglob("*.safetensors")) - set(seen.files))
    if strays:
        what = f"not of this model: {', '.join(seen.name(path) for path in strays)}"
        what += "; mlx-swift-lm loads every *.safetensors it finds, in subfolders too"
        yield "note", what, "move them out"
    named = optional(seen.file(checkpoint.INDEX)).get("weight_map")
    if isinstance(named, Mapping) and not seen.has_problem("weights"):
        wrong = {key for key in {**named, **seen.homes} if named.get(key) != seen.homes.get(key)}
        if wrong:
            what = f"{checkpoint.INDEX} and the files disagree about {listed(wrong)}"
            yield "note", f"{what}; transformers goes by the index", f"correct or remove {checkpoint.INDEX}"


def _original(seen: Seen) -> str:
    return ORIGINALS.get(seen.text.hidden_size if seen.text else 0, ", ".join(ORIGINALS.values()))


def _layout(seen: Seen) -> Said:
    if seen.layout is APPLE_APP:
        there = "is here, but " if seen.file("fastvithd.mlpackage").exists() else "is missing too, and "
        what = (
            "an export for Apple's app: no vision tower among the tensors. Its Core ML package "
            f"fastvithd.mlpackage {there}it cannot be read back"
        )
        yield "problem", what, f"use the checkpoint it was made from: {_original(seen)}"
    elif not any(name.startswith("vision.") for name in seen.raw):
        what = f"the vision tower is missing: no tensor begins with {seen.layout and seen.layout.tower}"
        yield "problem", what, f"use the original checkpoint: {_original(seen)}"


def _tensors(seen: Seen) -> Said:
    """Skipped, beyond keys without a rule, while a file is missing or damaged: all of it would be listed."""
    assert seen.layout is not None
    if seen.unruled:
        what = f"{len(seen.unruled)} tensor(s) without a rule in {seen.layout.name}: {listed(seen.unruled)}"
        repair = "upgrade fastvlm-mlx if the checkpoint is newer; remove what training left"
        yield "problem", what, f"{repair} (merge LoRA first)"
    if seen.expected is None or seen.has_problem("weights"):
        return
    found, stored_name = seen.found, seen.layout.stored_name
    tied = seen.text is not None and seen.text.tied and seen.theirs is not None
    different = differences(found, seen.expected, tied=tied)
    if missing := different.missing:
        what = f"{len(missing)} tensor(s) missing: {listed(map(stored_name, missing))}"
        yield "problem", what, f"{AGAIN}, or correct the number of layers in config.json"
    # Biases of another quantization mode are told with that.
    extra = [n for n in different.extra if not n.endswith(".biases") or f"{n[:-7]}.scales" not in found]
    if extra:
        what = f"{len(extra)} tensor(s) without a place in the model: {listed(map(stored_name, extra))}"
        yield "problem", what, "correct the number of layers in config.json, or remove the tensors"
    wrong: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    for name in different.wrong:
        key = seen.raw[name]
        shapes = (seen.stored[key].shape, turned(seen.expected[name], seen.layout, back=True))
        wrong.setdefault(shapes, []).append(key)
    for (is_, should), keys in sorted(wrong.items()):
        what = f"{listed(keys)}: shape {is_}, expected {should}"
        yield "problem", what, f"{AGAIN}, or correct the sizes in config.json"


def _vision_config(seen: Seen) -> Said:
    config, file = seen.theirs or {}, seen.file(checkpoint.CONFIG)
    if not config.get("vision_config"):
        what = "vision_config is missing or empty: mlx-vlm assumes the full FastViTHD, mlx-swift-lm refuses"
        yield "note", what, "convert to a complete directory with `fastvlm-mlx convert`"
    elif seen.vision is not None:
        try:
            source_config.check_vision(config, seen.vision, file)
        except FastVLMError as error:
            what, repair = told(error, "", seen.directory)
            yield "problem", what, f"{repair}; if blocks of the tower are missing, {AGAIN}"


def _head(seen: Seen) -> Said:
    config, raw = seen.theirs or {}, seen.raw
    key = "tie_word_embeddings"
    said = [s.get(key) for s in (source_config.text_section(config), config) if s.get(key) is not None]
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


def _pictures(seen: Seen) -> Said:
    file = seen.file("preprocessor_config.json")
    kind = optional(file).get("processor_class")
    if not file.exists():
        what = f"{file.name} is missing: the size, {seen.size} px, is taken from elsewhere"
        yield "note", what, f"copy {file.name} from the original checkpoint"
    elif seen.layout is MLX_VLM and kind != "FastVLMProcessor":
        what = f"{file.name}: processor_class is {kind!r}, which mlx-swift-lm refuses"
        yield "note", what, "set processor_class to FastVLMProcessor"


def _tokenizer(seen: Seen) -> Said:
    rows = seen.text.vocab_size if seen.text else None
    if seen.tokenizer and rows is not None and seen.tokenizer.size > rows:
        what = f"the tokenizer has {seen.tokenizer.size} ids, and the embedding {rows} rows"
        yield "problem", what, "take the tokenizer's files and the weights from the same checkpoint"
    if seen.tokenizer and not seen.file("tokenizer.json").exists():
        what = "tokenizer.json is missing: Swift needs it, vocab.json and merges.txt serve here"
        yield "note", what, "save it with transformers' AutoTokenizer, or convert with `fastvlm-mlx convert`"
    files = (seen.file("chat_template.jinja"), seen.file("chat_template.json"))
    template = optional(seen.file("tokenizer_config.json")).get("chat_template")
    if seen.theirs is not None and not template and not any(file.exists() for file in files):
        what = "no chat_template: other tools cannot build the prompt"
        yield "note", what, "copy chat_template from the original's tokenizer_config.json"


def _stops(seen: Seen) -> Said:
    rows = seen.text.vocab_size if seen.text else None
    if not seen.stops:
        yield "problem", "eos_token_ids is empty: answers would never end", "convert the checkpoint again"
    beyond = [stop for stop in seen.stops or () if rows is not None and not 0 <= stop < rows]
    if beyond:
        what = f"stop token(s) {beyond} beyond the {rows} rows of the embedding can never come"
        yield "note", what, "correct eos_token_id in config.json and generation_config.json"


def _generation(seen: Seen) -> Said:
    settings = optional(seen.file("generation_config.json"))
    penalty = settings.get("repetition_penalty")
    says = [f"repetition_penalty {penalty}"] if penalty not in (None, 1) else []
    says += [f"do_sample with temperature {settings.get('temperature')}"] if settings.get("do_sample") else []
    if says:
        what = f"generation_config.json has {' and '.join(says)}: ignored here, applied by transformers"
        yield "note", what, "to compare with transformers, pass do_sample=False, repetition_penalty=1.0 there"


def _quantization(seen: Seen) -> Said:
    config, found, raw = seen.theirs or {}, seen.found, seen.raw
    said = config.get("quantization") or config.get("quantization_config") or {}
    modes = {part.get("mode", "affine") for part in (said, *said.values()) if isinstance(part, Mapping)}
    bare = [n for n in raw if n.endswith(".scales") and f"{n[:-7]}.biases" not in found]
    if seen.theirs is not None and (modes - {"affine"} or bare):
        names = f": no biases beside {listed(raw[name] for name in bare)}" if bare else ""
        what = f"quantization mode {', '.join(sorted(modes - {'affine'})) or 'unknown'}, not affine{names}"
        yield "problem", what, "quantize the original checkpoint again, mode affine"
    if seen.theirs is not None and seen.packed and not said:
        what = "tensors are quantized, and config.json has no quantization: others cannot load them"
        yield "note", what, f'add "quantization" with group_size and bits to config.json: {packing(seen)}'
    if seen.layout is MLX_VLM and any(name.startswith("projector.") for name in seen.packed):
        repair = "quantize the original with `fastvlm-mlx convert`, which leaves it dense for Swift"
        yield "note", "the projector is quantized: mlx-swift-lm crashes on it", repair


def _values(seen: Seen) -> Said:
    values, raw = seen.values or {}, seen.raw
    broken = [name for name, one in values.items() if not one.finite]
    if broken:
        what = f"NaN or infinite values in {listed(broken)}"
        yield "problem", what, f"{AGAIN}, or go back to a training state before they appeared"
    weights = [key for name, key in raw.items() if re.fullmatch(r"language\..*\.(weight|scales)", name)]
    zero = [key for key in weights if key in values and values[key].finite and not values[key].peak]
    if zero:
        yield "note", f"nothing but zeros in {listed(zero)}", f"{AGAIN}, if it was not meant"
    large = [name for name, one in values.items() if one.finite and one.peak > FLOAT16_MAX]
    if large:
        what = f"values beyond float16's range in {listed(large)}: --dtype float16 would overflow"
        yield "note", what, "compute in bfloat16 or float32"


def _licence(seen: Seen) -> Said:
    if not any(seen.directory.glob("LICEN[SC]E*")):
        what = "no LICENSE file: Apple's weights are for research only, and the licence must travel along"
        yield "note", what, "copy LICENSE from the original checkpoint"


# subject, what must have been had, what to say when all is well, the check
CHECKS: tuple[tuple[str, tuple[str, ...], str, Callable[[Seen], Said]], ...] = (
    ("config.json", ("config",), "readable, and says what FastVLM needs", _config_notes),
    ("weights", (), "every file whole, no tensor twice", _weights),
    ("layout", ("layout",), "one layout, with its vision tower", _layout),
    ("tensors", ("layout",), "every name has a rule, none is missing, all shapes fit", _tensors),
    ("vision_config", ("theirs", "layout"), "says what the tensors say", _vision_config),
    ("output head", ("theirs", "layout"), "config.json and the tensors agree whether it is tied", _head),
    ("pictures", ("theirs",), "preprocessor_config.json is FastVLM's", _pictures),
    ("tokenizer", (), "complete, and the embedding has a row for every id", _tokenizer),
    ("stop tokens", ("stops",), "answers end", _stops),
    ("generation", (), "no sampling settings that others would apply", _generation),
    ("quantization", ("layout",), "none, or affine", _quantization),
    ("values", ("values",), "finite, not all zero, within float16", _values),
    ("licence", (), "there", _licence),
)
