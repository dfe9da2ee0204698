"""`export --target apple-app`: the flat folder that Apple's FastVLM app is built with.

The language model and the projector are MLX tensors, the vision tower is a Core ML package beside them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from ... import __version__
from ...config import IMAGE_MARK
from ...errors import ConfigError
from ...files.atomic import TOWER_PACKAGE
from ...inputs.tokenizer import Tokenizer
from ...weights.checkpoint import CONFIG
from ..doctor.inspect import Report
from ..read.tensor_names import APPLE_APP
from . import app_card, coreml_program, llava_config, steps, swift_files
from .check import apple_app
from .check.entry import check
from .coreml import Options, package_bytes, tower_of, write_package
from .steps import Exported

TOKENIZER = "tokenizer.json"


def export(
    source: Path,
    destination: Path,
    options: Options,
    *,
    bits: int | None = None,
    dtype: mx.Dtype = mx.float16,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """The result whole or absent. The source is only read."""
    steps.refuse(source, destination, bits, overwrite)
    if options.projector:
        raise ConfigError("Apple's app has the projector among its tensors; leave --projector out")
    tokenizer = Tokenizer.load(source)
    tower = tower_of(source, tokenizer)
    with mx.stream(mx.cpu):  # where float64 is
        found = steps.source_of(source, tokenizer, app_card.TARGETS["apple-app"].reader)
        weights, packing = steps.packed(found, bits, dtype, source)
        stored = {
            APPLE_APP.stored_name(name): array
            for name, array in weights.items()
            if not name.startswith("vision.")
        }
    config, layout = found.config, found.layout
    del weights, found  # so that each array goes once it is written
    coreml_program.require()
    if tokenizer.size >= config.text.vocab_size:
        raise ConfigError(
            f"{source}: all {config.text.vocab_size} rows of the embedding are taken, and Apple's app needs "
            f"one for {IMAGE_MARK}; export a checkpoint with a padded vocabulary"
        )
    eos, size = steps.eos_of(config, tokenizer), options.size or config.image.size
    config = dataclasses.replace(config, image=dataclasses.replace(config.image, size=size))
    body = llava_config.config(config, eos) | {"image_token_index": tokenizer.size}
    if packing:
        body["quantization"] = {"group_size": packing.group_size, "bits": packing.bits}
    texts = {
        CONFIG: body,
        "preprocessor_config.json": swift_files.preprocessor(size, apple_app.PROCESSOR),
        "tokenizer_config.json": swift_files.tokenizer_config(
            tokenizer, config, tokenizer.decode([eos], skip_special=False), apple_app.PROCESSOR
        ),
    }

    def finish(folder: Path, notice: str | None) -> Report:
        _add_image_token(folder / TOKENIZER, tokenizer.size)
        write_package(tower, folder, options, notice)
        report = check(folder)
        weights = f"{app_card.kind(dtype, bits)}; {TOWER_PACKAGE} {options.told}"
        facts = app_card.Facts(source.name, layout, __version__, config.text.hidden_size, weights)
        page = app_card.render(facts, app_card.TARGETS["apple-app"], report, notice)
        (folder / "README.md").write_text(page, encoding="utf-8")
        return report

    return steps.write(
        source,
        destination,
        tokenizer,
        texts,
        stored,
        finish,
        needs_bytes=package_bytes(tower, options),
        overwrite=overwrite,
        progress=progress,
    )


def _add_image_token(file: Path, token: int) -> None:
    """The app writes `<image>` once for each visual token, and looks its id up among the prompt's."""
    body = json.loads(file.read_text(encoding="utf-8"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    body["added_tokens"].append({"id": token, "content": IMAGE_MARK, **flags, "special": True})
    file.write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")
