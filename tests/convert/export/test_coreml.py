"""The Core ML program, as it lies on the disk, computes what the MLX tower does, and can take its place."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import mlx.core as mx
import numpy as np
import pytest
import scales
from checkpoints import golden
from command import Run
from pictures import TALL

import fastvlm_mlx
from fastvlm_mlx.convert.export.coreml import Options, export
from fastvlm_mlx.errors import CheckpointError, ConfigError, ImageError
from fastvlm_mlx.models import coreml_tower

if find_spec("coremltools") is None:
    pytest.skip("coremltools is not installed", allow_module_level=True)
import mil

from fastvlm_mlx.convert.export import coreml_program

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")

ErrorOf = Callable[[Any, Any], float]
Exporter = Callable[..., Path]
SOURCE = "apple-train"
# Random weights make a network that carries errors further than a trained one does.
LIMITS = {
    ("float32", None): 1e-5,
    ("float16", None): 2e-2,
    ("float16", "int8"): 0.1,
    ("float16", "palettize6"): 0.4,
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    @cache
    def out(source: str = SOURCE, **options: Any) -> Path:
        to = tmp_path_factory.mktemp("coreml") / "out"
        return export(golden(source), to, Options(**options)).destination

    return out


def computed(directory: Path, pixels: mx.array, name: str = coreml_tower.FEATURES) -> np.ndarray[Any, Any]:
    program, _ = mil.read(directory / "fastvithd.mlpackage")
    return mil.run(program, images=np.array(pixels).transpose(0, 3, 1, 2))[name]


@pytest.mark.parametrize(("precision", "weights"), LIMITS, ids=lambda one: str(one or "dense"))
def test_the_saved_program_computes_what_the_tower_does(
    precision: str,
    weights: str | None,
    exported: Exporter,
    vlm_of: Callable[[str], fastvlm_mlx.VLM],
    pixels: dict[str, mx.array],
    relative_error: ErrorOf,
) -> None:
    found = computed(exported(precision=precision, weights=weights), pixels["A"])
    expected = vlm_of(SOURCE).vision(pixels["A"]).flatten(1, 2)
    assert found.dtype == np.float32
    assert relative_error(found, expected) <= LIMITS[precision, weights]


def test_a_smaller_picture_from_another_layout_and_with_the_projector(
    exported: Exporter,
    vlm_of: Callable[[str], fastvlm_mlx.VLM],
    pixels: dict[str, mx.array],
    relative_error: ErrorOf,
) -> None:
    source = "hf-timm-unfused"
    small = pixels["A"][:, :128, :128]
    out = exported(source, size=128, precision="float32", projector=True)
    found = computed(out, small, coreml_program.EMBEDDINGS)
    assert relative_error(found, vlm_of(source).encode_image(small)) <= 1e-5


@pytest.mark.parametrize("pooling", ["average", "depthwise"])
def test_features_of_several_stages(
    pooling: Literal["average", "depthwise"],
    pixels: dict[str, mx.array],
    relative_error: ErrorOf,
    tmp_path: Path,
) -> None:
    source = scales.write(tmp_path / "model", pooling)
    small = pixels["A"][:, :128, :128]
    out = export(source, tmp_path / "out", Options(size=128, precision="float32")).destination
    expected = fastvlm_mlx.load(source, "float32").vision(small).flatten(1, 2)
    assert relative_error(computed(out, small), expected) <= 1e-5


def test_what_goes_in_and_comes_out_is_as_apples_app_asserts(exported: Exporter) -> None:
    program, spec = mil.read(exported(precision="float16", weights=None) / "fastvithd.mlpackage")
    kinds = {
        one.name: (tuple(one.type.multiArrayType.shape), one.type.multiArrayType.dataType)
        for one in (*spec.description.input, *spec.description.output)
    }
    float32 = 65568
    assert kinds == {"images": ((1, 3, 256, 256), float32), "image_features": ((1, 16, 256), float32)}
    assert mil.kinds(program) <= {*mil.OPERATIONS, "const"}


def test_packed_weights_take_less_room(exported: Exporter) -> None:
    def size(weights: str | None, precision: str = "float16") -> int:
        out = exported(precision=precision, weights=weights)
        return sum(path.stat().st_size for path in out.rglob("weight.bin"))

    assert size("palettize6") < size("int8") < size(None) < size(None, "float32")


def test_a_palette_is_as_good_as_64_colours_can_be() -> None:
    values = np.random.default_rng(0).normal(size=(300, 400)).astype(np.float32)
    colours, indices = coreml_program.palette(values)
    assert (colours.shape, colours.dtype, indices.dtype) == ((64,), np.float32, np.uint8)
    error = float(np.sqrt(((colours[indices].reshape(values.shape) - values) ** 2).mean()))
    assert error <= 0.03  # 0.0253 is the least for a normal distribution
    few, which = coreml_program.palette(np.float32([[3, 3], [1, 3]]))
    assert few[which].tolist() == [3, 3, 1, 3]


# --- run in the MLX tower's place ---


class Mac:
    """coremltools as it is on macOS: it predicts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        import coremltools

        self.asked = 0
        program = cache(lambda path: mil.read(Path(path)))

        class MLModel:
            def __init__(model, path: str, compute_units: object) -> None:
                assert compute_units is coremltools.ComputeUnit.CPU_AND_NE
                model.program, model.spec = program(path)

            def get_spec(model) -> Any:
                return model.spec

            def predict(model, inputs: dict[str, Any]) -> dict[str, Any]:
                self.asked += 1
                return mil.run(model.program, **inputs)

        fake = SimpleNamespace(models=SimpleNamespace(MLModel=MLModel), ComputeUnit=coremltools.ComputeUnit)
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setitem(sys.modules, "coremltools", fake)


@pytest.mark.parametrize(("how", "pieces"), [((), 1), (("--image-mode", "tiles", "--grid", "1x2"), 3)])
def test_generate_sees_through_the_package(
    run: Run,
    exported: Exporter,
    monkeypatch: pytest.MonkeyPatch,
    how: tuple[str, ...],
    pieces: int,
) -> None:
    package = exported(precision="float32", weights=None)
    ask = ["generate", TALL, "-m", golden(SOURCE), "-p", "What is this?", "-n", 8, *how]
    expected = run(*ask, "--image-size", 256)
    mac = Mac(monkeypatch)
    found = run(*ask, "--vision-backend", "coreml", "--vision-package", package)
    assert (found.code, mac.asked) == (0, pieces), found.err
    assert found.out == expected.out


def test_a_picture_of_another_size_is_refused(exported: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    package = exported(precision="float32", weights=None)
    Mac(monkeypatch)
    vlm = fastvlm_mlx.load(golden(SOURCE), vision_package=package)
    with pytest.raises(ImageError, match=r"takes pictures of 256×256.*--image-size"):
        vlm.generate(vlm.prompt("What?", images=[TALL], options=fastvlm_mlx.ImageOptions(512)), max_tokens=1)


def test_packages_that_do_not_serve_are_refused(
    exported: Exporter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    projected = exported("hf-timm-unfused", size=128, precision="float32", projector=True)
    Mac(monkeypatch)
    with pytest.raises(CheckpointError, match="without --projector"):
        fastvlm_mlx.load(golden(SOURCE), vision_package=projected)
    with pytest.raises(CheckpointError, match=r"not there.*--target coreml"):
        fastvlm_mlx.load(golden(SOURCE), vision_package=tmp_path)


@pytest.mark.skipif(sys.platform == "darwin", reason="runs there")
def test_elsewhere_one_line_says_that_it_needs_macos(run: Run) -> None:
    done = run("generate", TALL, "-m", golden(SOURCE), "--vision-backend", "coreml")
    assert done.code == 1
    assert "macOS alone" in done.err
    assert len(done.err.splitlines()) == 1


# --- options ---


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 100}, "multiple"),
        ({"precision": "int4"}, "choose one of float16, float32"),
        ({"weights": "int3"}, "choose one of int8, palettize6"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises((ConfigError, ImageError), match=says):
        Options(**options)


def test_without_coremltools_one_line_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    for target in ("coreml", "apple-app"):
        done = run("export", golden(SOURCE), "--target", target, "-o", tmp_path / "out")
        assert done.code == 1
        assert "pip install 'fastvlm-mlx[coreml]'" in done.err
        assert not list(tmp_path.iterdir())
