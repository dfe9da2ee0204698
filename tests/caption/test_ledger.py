"""How the work is divided: a part belongs to one at a time, and every part to somebody."""

from __future__ import annotations

import fcntl
from io import FileIO
from pathlib import Path

import pytest

from fastvlm_mlx.caption.crew import Crew
from fastvlm_mlx.caption.items import Item
from fastvlm_mlx.caption.ledger import PARTS, CaptionSettings, opened
from fastvlm_mlx.caption.results import settle

SETTINGS = CaptionSettings(
    "float32", "w", "What?", False, None, 6, 0.0, 1.0, 0, 0.0, 1.0, None, 64, "pad", False
)


def test_a_part_belongs_to_whoever_holds_it_until_they_end(tmp_path: Path) -> None:
    out = tmp_path / "captions.jsonl"
    with opened(out, SETTINGS, 1, False) as one, opened(out, SETTINGS, 2, False) as other:
        held = one.claim(3)
        assert held is not None
        assert other.claim(3) is None
        beside = other.claim(4)
        assert beside is not None
        held.left = 2
        held.add({"key": "a", "caption": "x", "tokens": 1, "reason": "stop"})
        assert other.claim(3) is None
        assert other.records().keys() == {"a"}
        held.add({"key": "b", "error": "torn", "launch": 1})
        again = other.claim(3)  # the last of its pictures is done
        assert again is not None
        assert again.records.keys() == {"a", "b"}
        for part in (beside, again):
            part.close()


def test_what_failed_is_tried_again_once_a_launch_if_asked_for(tmp_path: Path) -> None:
    failed = {"key": "b", "error": "torn", "launch": 1}
    for launch, retry, done in ((1, True, True), (2, True, False), (2, False, True)):
        with opened(tmp_path / "captions.jsonl", SETTINGS, launch, False) as ledger:
            assert ledger.is_done(failed, retry) is done
            assert ledger.is_done({"key": "b", "caption": "x"}, retry)
            assert not ledger.is_done(None, retry)


def test_pictures_are_spread_over_the_parts(tmp_path: Path) -> None:
    with opened(tmp_path / "captions.jsonl", SETTINGS, 1, False) as ledger:
        numbers = [ledger.part_of(Item(f"{n:05}.png", "", Path())) for n in range(20 * PARTS)]
    assert len(set(numbers)) == PARTS
    assert max(numbers.count(number) for number in range(PARTS)) < 60


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_part_is_looked_at_by_all_or_is_somebody_s_own(size: int) -> None:
    free = [Crew(1, rank, size).order(10) for rank in range(size)]
    assert all(sorted(order) == list(range(10)) for order in free)
    assert len({order[0] for order in free}) == size
    own = [Crew(1, rank, size, one_folder=False).order(10) for rank in range(size)]
    assert sorted(number for order in own for number in order) == list(range(10))


def test_a_result_is_written_though_another_process_is_just_starting(tmp_path: Path) -> None:
    """Who starts holds the settings' lock, and who is done must not take that for another writer."""
    out = tmp_path / "captions.jsonl"
    item = Item("a.jpg", None, tmp_path / "a.jpg", {})
    with opened(out, SETTINGS, 1, False) as ledger:
        part = ledger.claim(ledger.part_of(item))
        assert part is not None
        part.left = 1
        part.add({"key": "a.jpg", "caption": "x", "tokens": 1, "reason": "stop"})
        with FileIO(ledger.folder / "settings.json", "a+") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            assert settle("jsonl", out, [item], ledger).captions == 1
    assert out.exists()
