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
from fastvlm_mlx.bench import peer
from fastvlm_mlx.bench.measure import QUESTION, picture
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
    theirs = peer.load(MODEL, ours)
    asked = ours.prompt(QUESTION, [picture()], image_size=128)
    assert relative_error(theirs.logits(asked), ours.logits(asked)) <= 5e-5
    assert peer.agreement(ours, theirs, 128) == peer.Agreement(peer.ANSWER, peer.ANSWER)


@pytest.mark.usefixtures("modules")
def test_both_are_timed_part_by_part(run: Run, tmp_path: Path) -> None:
    done = run("bench", "-m", MODEL, "--against", "mlx-vlm", *OPTIONS, "--json", tmp_path / "p.json")
    assert (done.code, done.err) == (0, "")
    body = json.loads((tmp_path / "p.json").read_text())
    assert body["agreement"] == {"same": 32, "of": 32}
    assert [row["part"] for row in body["against"]] == list(peer._ROWS)
    assert all(row["ratio"] > 0 for row in body["against"])
    assert {name: len(runs) for name, runs in body["runs"].items()} == {"ours 64": 2, "theirs 64": 2}
    assert "the first 32 of 32 greedy tokens are the same" in done.out


@pytest.mark.usefixtures("modules")
def test_another_answer_is_not_timed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = peer.load

    def broken(directory: Path, ours: fastvlm_mlx.VLM) -> fastvlm_mlx.VLM:
        theirs = whole(directory, ours)
        weight = theirs.model["language"].language.model.norm
        weight.weight = -weight.weight
        return theirs

    monkeypatch.setattr(peer, "load", broken)
    done = run("bench", "-m", MODEL, "--against", "mlx-vlm", *OPTIONS)
    assert_refused(done, "differently from the first token", "export --check")


def test_how_far_answers_agree_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = fastvlm_mlx.load(MODEL, "float32")
    said = {id(ours): (1, 2, 3, 4)}
    monkeypatch.setattr(peer, "_answer", lambda vlm, _: said.get(id(vlm), (1, 2, 9, 4)))
    assert peer.agreement(ours, None, 64).same == 2  # type: ignore[arg-type]
    monkeypatch.setattr(peer, "_answer", lambda vlm, _: said.get(id(vlm), (7, 2, 3, 4)))
    with pytest.raises(CheckpointError, match="from the first token"):
        peer.agreement(ours, None, 64)  # type: ignore[arg-type]


def test_a_peer_that_is_not_installed_is_named_with_its_extra(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = run("bench", "-m", MODEL, "--against", "mlx-vlm")
    assert_refused(done, "mlx_lm is not installed", r"pip install 'fastvlm-mlx\[peers\]'")


@pytest.mark.usefixtures("modules")
def test_it_takes_stored_weights(run: Run) -> None:
    assert_refused(run("bench", "--random", "0.5b", "--against", "mlx-vlm"), "stored weights", "--model")
    assert_refused(run("bench", "-m", MODEL, "--against", "fastvit,mlx-vlm"), "'mlx-vlm'", "mlx-vlm alone")
