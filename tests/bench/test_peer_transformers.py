"""`bench --against transformers`: what needs no PyTorch with a stand-in for it, and then the real one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import peers
import pytest
import scales
from checkpoints import stored
from command import MODEL, Run
from refusals import assert_refused

import fastvlm_mlx
from fastvlm_mlx.bench import peer, peer_transformers
from fastvlm_mlx.bench.measure import QUESTION, Case, picture
from fastvlm_mlx.bench.peer import ANSWER, Peer
from fastvlm_mlx.inputs.tokenizer import Tokenizer

DirectoryOf = Callable[[str], Path]
OPTIONS = ("--sizes", 64, "--runs", 2, "--tokens", 3)
SOURCES = ("apple-fused", "apple-train", "hf-timm-unfused", "mlx-vlm-f32", "tied", "apple-fused, converted")


# --- the same weights ---


def written(source: Path, folder: Path) -> Path:
    ours = fastvlm_mlx.load(source, "float32")
    peer_transformers.write(
        source, folder, ours.config, peer_transformers._mark(ours.config, ours.tokenizer), mx.float32
    )
    return folder


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_written_for_it_is_the_same_model(
    name: str, directory_of: DirectoryOf, tmp_path: Path, relative_error: Any
) -> None:
    source = directory_of(name)
    written(source, tmp_path)
    Tokenizer.load(source).save(tmp_path)
    ours, again = (fastvlm_mlx.load(at, "float32") for at in (source, tmp_path))
    asked = ours.prompt(QUESTION, [picture()], options=fastvlm_mlx.ImageOptions(64))
    assert again.layout == "hf-timm"
    assert relative_error(again.logits(asked), ours.logits(asked)) <= 2e-5


def test_names_and_shapes_are_those_of_its_own_fused_checkpoints(
    directory_of: DirectoryOf, tmp_path: Path
) -> None:
    def shapes(at: Path) -> dict[str, tuple[int, ...]]:
        return {key: array.shape for key, array in stored(at).items()}

    theirs = shapes(directory_of("hf-fused"))
    padded = {"lm_head.weight", "model.language_model.embed_tokens.weight"}  # with rows of no token
    mine = shapes(written(MODEL, tmp_path))
    assert mine.keys() == {key for key in theirs if not key.endswith("num_batches_tracked")}
    assert {key for key in mine if mine[key] != theirs[key]} == padded


def test_its_configuration_says_what_its_own_says(directory_of: DirectoryOf, tmp_path: Path) -> None:
    theirs = json.loads((directory_of("hf-fused") / "config.json").read_text())
    mine = json.loads((written(directory_of("hf-timm-unfused"), tmp_path) / "config.json").read_text())
    for section in ("text_config", "vision_config"):
        for key in mine[section].keys() & theirs[section].keys() - {"model_args", "max_position_embeddings"}:
            assert mine[section][key] == theirs[section][key], key
    for key in ("layers", "embed_dims"):
        assert mine["vision_config"]["model_args"][key] == theirs["vision_config"]["model_args"][key]
    assert mine["image_token_index"] == theirs["image_token_index"]
    assert mine["tie_word_embeddings"] is False


def test_features_of_several_stages_are_refused(tmp_path: Path) -> None:
    source = scales.write(tmp_path / "model", "average")
    with pytest.raises(fastvlm_mlx.ConfigError, match="transformers cannot hold multi-scale features"):
        written(source, tmp_path)


# --- its loop, with a stand-in for PyTorch ---


class Tensor:
    """As much of a tensor as is asked for."""

    def __init__(self, values: Any):
        self.values = np.asarray(values)

    def flatten(self) -> Tensor:
        return Tensor(self.values.flatten())

    def tolist(self) -> list[int]:
        return list(map(int, self.values))

    def to(self, *_: object) -> Tensor:
        return self


class Model:
    """Says what ours would, and remembers what it was given."""

    dtype = "float32"

    def __init__(self, says: list[int]):
        self.says, self.given = says, {}
        self.hooks: list[Callable[..., None]] = []
        add = SimpleNamespace(
            register_forward_pre_hook=self.hooks.append, register_forward_hook=self.hooks.append
        )
        self.model = SimpleNamespace(vision_tower=add, multi_modal_projector=add)

    def generate(self, *, streamer: Any, max_new_tokens: int, **given: Any) -> None:
        self.given = given
        streamer.put(given["input_ids"])
        for hook in self.hooks:
            hook(None, None)
        for token in self.says[:max_new_tokens]:
            streamer.put(Tensor([token]))
        streamer.end()


class Processor:
    def __init__(self, **said: Any):
        self.side = said["crop_size"]["height"]

    def __call__(self, images: Any, return_tensors: str) -> dict[str, Tensor]:
        assert return_tensors == "pt"
        return {"pixel_values": Tensor(np.zeros((1, 3, self.side, self.side)))}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    torch, transformers = ModuleType("torch"), ModuleType("transformers")
    torch.tensor = lambda values, device: Tensor(values)  # type: ignore[attr-defined]
    torch.ones_like = lambda ids: Tensor(np.ones_like(ids.values))  # type: ignore[attr-defined]
    torch.inference_mode = nullcontext  # type: ignore[attr-defined]
    transformers.CLIPImageProcessor = Processor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    monkeypatch.setattr(peer, "require", lambda *_: None)


def standing_in(ours: fastvlm_mlx.VLM, says: list[int]) -> tuple[Model, Peer]:
    model = Model(says)
    theirs = peer_transformers.PyTorch(
        ours, model, "cpu", peer_transformers._mark(ours.config, ours.tokenizer)
    )
    return model, Peer("transformers", "on the cpu", theirs, theirs.answer, {}, image_mode="crop")


def truly(ours: fastvlm_mlx.VLM, size: int) -> list[int]:
    asked = ours.prompt(QUESTION, [picture()], options=fastvlm_mlx.ImageOptions(size, "crop"))
    return list(peer.answer(ours, asked))


@pytest.mark.usefixtures("stand_in")
def test_it_is_asked_as_ours_is_with_a_mark_for_each_row_of_the_picture() -> None:
    ours = fastvlm_mlx.load(MODEL, "float32")
    model, theirs = standing_in(ours, truly(ours, 128))
    assert peer.agreement(ours, theirs, 128) == peer.Agreement(ANSWER, ANSWER)
    ids = model.given["input_ids"].values[0].tolist()
    mark = ours.tokenizer.size
    assert ids.count(mark) == 4
    asked = ours.prompt(QUESTION, [picture()], options=fastvlm_mlx.ImageOptions(128))
    assert [i for i in ids if i != mark] == [i for part in asked for i in getattr(part, "ids", ())]
    assert model.given["pixel_values"].values.shape == (1, 3, 128, 128)
    assert model.given["suppress_tokens"] == list(range(ours.tokenizer.size, ours.config.text.vocab_size))
    assert model.given["do_sample"] is False


@pytest.mark.usefixtures("stand_in")
def test_its_parts_make_up_its_time() -> None:
    ours = fastvlm_mlx.load(MODEL, "float32")
    _, theirs = standing_in(ours, [1, 2, 3, 4, 5])
    assert not isinstance(theirs.timed, fastvlm_mlx.VLM)
    run = theirs.timed.measure(picture(), Case(128, 1, image_mode="crop"), 4)
    assert (run.tokens, run.image_tokens) == (4, 4)
    assert run.parts_s == pytest.approx(run.ttft_s)
    assert min(run.read_s, run.preprocess_s, run.prompt_s, run.prefill_s, run.decode_s) > 0


@pytest.mark.usefixtures("stand_in")
def test_both_are_timed_in_turn_and_told(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_transformers, "load", lambda _, ours: standing_in(ours, truly(ours, 64))[1])
    files = ("--json", tmp_path / "t.json", "--markdown", tmp_path / "t.md")
    done = run("bench", "-m", MODEL, "--against", "transformers", *OPTIONS, *files)
    assert (done.code, done.err) == (0, "")
    body = json.loads((tmp_path / "t.json").read_text())
    assert body["agreement"] == {"same": 32, "of": 32}
    assert body["peer"]["name"] == "transformers"
    assert {name: len(runs) for name, runs in body["runs"].items()} == {"ours 64": 2, "theirs 64": 2}
    assert "### Against transformers" in (tmp_path / "t.md").read_text()
    assert "transformers ms" in done.out


@pytest.mark.usefixtures("stand_in", "interrupted")
def test_interrupted_what_was_measured_is_kept_and_marked(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_transformers, "load", lambda _, ours: standing_in(ours, truly(ours, 64))[1])
    done = run("bench", "-m", MODEL, "--against", "transformers", *OPTIONS, "--json", tmp_path / "t.json")
    assert done.code == 130
    body = json.loads((tmp_path / "t.json").read_text())
    assert (body["complete"], body["against"]) == (False, [])
    assert {name: len(runs) for name, runs in body["runs"].items()} == {"ours 64": 1, "theirs 64": 0}


@pytest.mark.usefixtures("stand_in")
def test_another_answer_is_not_timed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Path, ours: fastvlm_mlx.VLM) -> Peer:
        return standing_in(ours, [token + 1 for token in truly(ours, 64)])[1]

    monkeypatch.setattr(peer_transformers, "load", load)
    done = run("bench", "-m", MODEL, "--against", "transformers", *OPTIONS, "--json", tmp_path / "t.json")
    assert_refused(done, "transformers answers differently from the first token", "doctor")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("stand_in_loading")
def test_a_release_without_fastvlm_is_refused(run: Run) -> None:
    del sys.modules["transformers"].FastVlmForConditionalGeneration  # type: ignore[attr-defined]
    done = run("bench", "-m", MODEL, "--against", "transformers", *OPTIONS)
    assert_refused(done, "FastVlmForConditionalGeneration cannot be imported", "pip install .* -U")


@pytest.mark.usefixtures("stand_in_loading")
def test_packed_weights_are_refused(run: Run, directory_of: DirectoryOf) -> None:
    done = run("bench", "-m", directory_of("mlx-vlm-4bit"), "--against", "transformers", *OPTIONS)
    assert_refused(done, "computes in floats", "the model it was made from")


@pytest.fixture
def stand_in_loading(stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = ModuleType("transformers.utils.logging")
    quiet.set_verbosity_error = quiet.disable_progress_bar = lambda: None  # type: ignore[attr-defined]
    for name, module in {
        "transformers.utils": ModuleType("transformers.utils"),
        quiet.__name__: quiet,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["transformers"].FastVlmForConditionalGeneration = None  # type: ignore[attr-defined]


# --- the real one ---


@pytest.fixture
def real() -> None:
    for package in peer_transformers.PACKAGES:
        if not peers.installed(package):
            pytest.skip(f"{package} is not there: {peer_transformers.INSTALL}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("name", ["apple-fused", "hf-timm-unfused", "tied"])
def test_the_real_one_answers_the_same(name: str, directory_of: DirectoryOf) -> None:
    ours = fastvlm_mlx.load(directory_of(name), "float32")
    theirs = peer_transformers.load(directory_of(name), ours)
    for size in (64, 128):
        assert peer.agreement(ours, theirs, size) == peer.Agreement(ANSWER, ANSWER)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("real")
def test_the_real_one_is_timed_in_turn_with_ours(run: Run, tmp_path: Path) -> None:
    done = run("bench", "-m", MODEL, "--against", "transformers", *OPTIONS, "--json", tmp_path / "t.json")
    assert done.code == 0, done.err
    body = json.loads((tmp_path / "t.json").read_text())
    assert set(body["peer"]["versions"]) == {"torch", "transformers", "timm"}
    assert "PyTorch on the" in body["peer"]["how"]
    assert all(row["theirs_s"] > 0 for row in body["against"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("name", ["apple-train", "hf-timm-unfused"])
def test_a_conversion_is_verified_against_the_real_one(
    name: str, run: Run, directory_of: DirectoryOf, tmp_path: Path
) -> None:
    done = run("convert", directory_of(name), "-o", tmp_path / "out", "--verify-against", "transformers")
    assert done.code == 0, done.err
    assert "transformers against the fused source" in done.err
