"""`bench --against mlx-vlm`: the real modules, the same weights, the same answer, then their times."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
from command import MODEL, Run
from refusals import assert_refused

import fastvlm_mlx
from fastvlm_mlx.bench import peer, peer_mlx_vlm
from fastvlm_mlx.bench.measure import QUESTION, picture
from fastvlm_mlx.bench.peer import Peer
from fastvlm_mlx.errors import CheckpointError

OPTIONS = ("--sizes", 64, "--runs", 2, "--tokens", 3)


@pytest.fixture
def modules() -> Iterator[None]:
    """The peer's modules without the applications around them."""
    before = set(sys.modules)
    for package in ("mlx_lm", "mlx_vlm"):
        if not peers.installed(package):
            pytest.skip(f"pip install --no-deps {package.replace('_', '-')}")
    for module in ("mlx_lm.models.cache", "mlx_vlm.models.fastvlm.config", "mlx_vlm.models.fastvlm.fastvlm"):
        peers.load(module)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("mlx_lm", "mlx_vlm"):
            del sys.modules[name]


@pytest.mark.usefixtures("modules")
def test_its_modules_in_our_loop_give_the_same_logits(relative_error: Any) -> None:
    ours = fastvlm_mlx.load(MODEL, "float32")
    theirs = peer_mlx_vlm.load(MODEL, ours)
    asked = ours.prompt(QUESTION, [picture()], options=fastvlm_mlx.ImageOptions(128))
    assert isinstance(theirs.timed, fastvlm_mlx.VLM)
    assert relative_error(theirs.timed.logits(asked), ours.logits(asked)) <= 5e-5
    assert peer.agreement(ours, theirs, 128) == peer.Agreement(peer.ANSWER, peer.ANSWER)


@pytest.mark.usefixtures("modules")
def test_both_are_timed_part_by_part(run: Run, tmp_path: Path) -> None:
    done = run("bench", "-m", MODEL, "--against", "mlx-vlm", *OPTIONS, "--json", tmp_path / "p.json")
    assert (done.code, done.err) == (0, "")
    body = json.loads((tmp_path / "p.json").read_text())
    assert body["agreement"] == {"same": 32, "of": 32}
    assert set(body["peer"]["versions"]) == {"mlx_lm", "mlx_vlm"}
    assert [row["part"] for row in body["against"]] == list(peer._ROWS)
    assert all(row["ratio"] > 0 for row in body["against"])
    assert {name: len(runs) for name, runs in body["runs"].items()} == {"ours 64": 2, "theirs 64": 2}
    assert "the first 32 of 32 greedy tokens are the same" in done.out


@pytest.mark.usefixtures("modules")
def test_another_answer_is_not_timed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = peer_mlx_vlm.load

    def broken(directory: Path, ours: fastvlm_mlx.VLM) -> Peer:
        theirs = whole(directory, ours)
        assert isinstance(theirs.timed, fastvlm_mlx.VLM)
        weight = theirs.timed.model["language"].language.model.norm
        weight.weight = -weight.weight
        return theirs

    monkeypatch.setattr(peer_mlx_vlm, "load", broken)
    done = run("bench", "-m", MODEL, "--against", "mlx-vlm", *OPTIONS)
    assert_refused(done, "mlx-vlm answers differently from the first token", "fastvlm-mlx doctor")


def test_how_far_answers_agree_is_counted() -> None:
    ours = fastvlm_mlx.load(MODEL, "float32")
    said = list(peer.answer(ours, ours.prompt(QUESTION, [picture()], options=fastvlm_mlx.ImageOptions(64))))

    def agreed(second: list[int]) -> int:
        return peer.agreement(ours, Peer("a peer", "", ours, lambda prompt: second, {}), 64).same

    assert agreed(said) == peer.ANSWER
    assert agreed([*said[:2], said[2] + 1, *said[3:]]) == 2
    with pytest.raises(CheckpointError, match="a peer answers differently from the first token"):
        agreed([said[0] + 1, *said[1:]])


@pytest.mark.parametrize(
    ("name", "found", "repair"),
    [
        ("mlx-vlm", "mlx_lm is not installed", r"pip install 'fastvlm-mlx\[peers\]'"),
        ("transformers", "torch is not installed", "pip install torch transformers timm"),
    ],
)
def test_a_peer_that_is_not_installed_is_named_with_its_repair(
    name: str, found: str, repair: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_refused(run("bench", "-m", MODEL, "--against", name), found, repair)


@pytest.mark.parametrize("name", ["mlx-vlm", "transformers"])
def test_a_peer_takes_stored_weights_and_no_rivals(
    name: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "require", lambda *_: None)
    assert_refused(run("bench", "--random", "0.5b", "--against", name), "trained weights", "--model")
    refused = run("bench", "-m", MODEL, "--against", f"fastvit,{name}")
    assert_refused(refused, f"'{name}'", "transformers or mlx-vlm alone")
