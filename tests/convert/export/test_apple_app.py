"""The folder for Apple's FastVLM app: what is in it, and what the check catches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import golden, stored
from command import Run

from fastvlm_mlx.convert.doctor.checks import examine
from fastvlm_mlx.convert.export.apple_app import export
from fastvlm_mlx.convert.export.check.entry import check
from fastvlm_mlx.convert.export.coreml import Options
from fastvlm_mlx.inputs.tokenizer import Tokenizer

if find_spec("coremltools") is None:
    pytest.skip("coremltools is not installed", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")

REFERENCE = golden("apple-mlx-export-fp16")
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
PACKAGE = "fastvithd.mlpackage"
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("app") / "out"
    return export(golden("apple-fused"), to, Options(precision="float32")).destination


def test_tensors_are_those_of_apples_own_export(exported: Path) -> None:
    found, expected = stored(exported), stored(REFERENCE)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert array.dtype == expected[name].dtype, name
        assert mx.array_equal(array, expected[name]), name


def test_what_the_app_decodes_is_as_in_apples_own_export(exported: Path) -> None:
    for file, keys in {
        CONFIG: [
            *("model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"),
            *("num_key_value_heads", "vocab_size", "rms_norm_eps", "rope_theta", "tie_word_embeddings"),
            *("mm_hidden_size", "image_token_index", "rope_scaling"),
        ],
        PREPROCESSOR: ["processor_class", "image_mean", "image_std", "size", "crop_size"],
    }.items():
        found, expected = (json.loads((at / file).read_text()) for at in (exported, REFERENCE))
        assert {key: found.get(key) for key in keys} == {key: expected.get(key) for key in keys}
    assert "quantization" not in json.loads((exported / CONFIG).read_text())


def test_the_image_word_is_a_token_there_and_other_ids_are_the_same(exported: Path) -> None:
    backend = pytest.importorskip("tokenizers").Tokenizer.from_file(str(exported / "tokenizer.json"))
    index = json.loads((exported / CONFIG).read_text())["image_token_index"]
    assert backend.encode("<image><image>", add_special_tokens=False).ids == [index] * 2
    text = "<|im_start|>user\nWhat is <this>?<|im_end|>"
    assert backend.encode(text, add_special_tokens=False).ids == Tokenizer.load(REFERENCE).encode(text)


def test_bits_pack_the_language_model_alone(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    done = run("export", golden("apple-fused"), "--target", "apple-app", "--bits", 4, "-o", out)
    assert done.code == 0, done.err
    packed = {name for name in stored(out) if name.endswith(".scales")}
    assert packed
    assert all(name.startswith("language_model.") for name in packed)
    assert json.loads((out / CONFIG).read_text())["quantization"] == {"group_size": 64, "bits": 4}
    assert "1, 256, 3072" in done.out  # of another size than the app was written for
    assert run("export", "--check", out).code == 0
    assert any("as Apple's app requires" in one.what for one in examine(out).findings)


def saying(file: str, **changes: Any) -> Damage:
    def damage(at: Path) -> None:
        body = json.loads((at / file).read_text()) | changes
        (at / file).write_text(json.dumps({key: value for key, value in body.items() if value is not ...}))

    return damage


def without_image_token(at: Path) -> None:
    body = json.loads((at / "tokenizer.json").read_text())
    body["added_tokens"] = [one for one in body["added_tokens"] if one["content"] != "<image>"]
    (at / "tokenizer.json").write_text(json.dumps(body))


def tensors(change: Callable[[dict[str, mx.array]], dict[str, mx.array]]) -> Damage:
    def damage(at: Path) -> None:
        mx.save_safetensors(str(at / "model.safetensors"), change(stored(at)), {"format": "mlx"})

    return damage


NORM = "language_model.model.norm.weight"
TRAPS: dict[str, tuple[Damage, str]] = {
    "no package": (lambda at: shutil.rmtree(at / PACKAGE), PACKAGE),
    "a torn package": (lambda at: (at / PACKAGE / "Manifest.json").write_text("{}"), "no Core ML package"),
    "FastVLMProcessor": (saying(PREPROCESSOR, processor_class="FastVLMProcessor"), "processor_class"),
    "no <image> token": (without_image_token, "<image>"),
    "another image_token_index": (saying(CONFIG, image_token_index=151646), "image_token_index"),
    "the index of other programs": (saying(CONFIG, image_token_index=-200), "image_token_index"),
    "no mm_hidden_size": (saying(CONFIG, mm_hidden_size=...), "mm_hidden_size"),
    "rope_scaling": (saying(CONFIG, rope_scaling={"type": "linear"}), "rope_scaling"),
    "a size that is not the package's": (
        saying(PREPROCESSOR, crop_size={"height": 512, "width": 512}),
        "256 px",
    ),
    "a tensor too few": (tensors(lambda w: {k: v for k, v in w.items() if k != NORM}), NORM),
    "a tensor too many": (tensors(lambda w: w | {"vision_tower.x": mx.ones(3)}), "vision_tower.x"),
    "a tensor of another shape": (tensors(lambda w: w | {NORM: mx.ones(3)}), NORM),
    "no tokenizer.json": (lambda at: (at / "tokenizer.json").unlink(), "tokenizer"),
}


@pytest.mark.parametrize(("damage", "names"), TRAPS.values(), ids=TRAPS)
def test_the_check_names_what_would_not_load(
    damage: Damage, names: str, exported: Path, tmp_path: Path
) -> None:
    at = Path(shutil.copytree(exported, tmp_path / "damaged"))
    damage(at)
    problems = [finding for finding in check(at).findings if finding.level == "problem"]
    assert any(names in finding.what for finding in problems), problems
    assert all(finding.repair for finding in problems)


def test_what_the_check_finds_nothing_wrong_with(exported: Path) -> None:
    report = check(exported)
    assert report.healthy
    assert report.facts["gives"] == "image_features 1×16×256"
