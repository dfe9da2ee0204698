"""`caption` as a user meets it: the model's own answers, in order, in every format, none made twice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from albums import album, drawn, lines, records, said, shard
from command import MODEL, Ran, Run

from fastvlm_mlx import VLM, ImageOptions
from fastvlm_mlx.inference import generate
from fastvlm_mlx.inference.sampling import Sampling
from fastvlm_mlx.terminal import progress

TOKENS, SIZE = 6, 64
QUESTION = "Describe the image."

Captioned = Callable[..., Ran]


def alone(vlm: VLM, number: int, /, question: str = QUESTION, **options: Any) -> str:
    """What the model says of a picture by itself."""
    prompt = vlm.prompt(question, [drawn(number)], options=ImageOptions(SIZE))
    return vlm.generate(prompt, max_tokens=TOKENS, **options).text.strip()


@pytest.fixture(scope="module")
def vlm(vlm_of: Callable[[str], VLM]) -> VLM:
    return vlm_of("apple-fused")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each batch had."""
    sizes: list[int] = []
    answers = generate.answer_batch

    def counted(model: Any, tokenizer: Any, prompts: Any, **options: Any) -> Any:
        sizes.append(len(prompts))
        return answers(model, tokenizer, prompts, **options)

    monkeypatch.setattr(generate, "answer_batch", counted)
    return sizes


# --- captions ---


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_captions_are_the_model_s_answers_in_order_whatever_the_batch(
    vlm: VLM, captioned: Captioned, tmp_path: Path, batch: int
) -> None:
    done = captioned(album(tmp_path / "photos", 8), "--batch", batch)
    assert re.fullmatch(r"\S*captions\.jsonl: 8 captions; 8 new, [\d.]+ pictures/s\n", done.err)
    found = records(tmp_path / "captions.jsonl")
    assert [(record["key"], record["caption"]) for record in found] == [
        (f"{seed:04}.png", alone(vlm, seed)) for seed in range(8)
    ]
    assert found[0].keys() == {"key", "caption", "tokens", "reason"}
    assert (found[0]["tokens"], found[0]["reason"]) == (TOKENS, "length")


def test_batches_are_full_across_parts(captioned: Captioned, tmp_path: Path, asked: list[int]) -> None:
    captioned(album(tmp_path / "photos", 23), "--batch", 4)
    assert len(list((tmp_path / "captions.jsonl.run").glob("part-*"))) > 15
    assert asked == [4, 4, 4, 4, 4, 3]


def test_what_is_asked_and_how_is_as_in_generate(vlm: VLM, captioned: Captioned, tmp_path: Path) -> None:
    sampling = {"temperature": 1.0, "top_k": 20, "repetition_penalty": 1.2, "seed": 3}
    options = [word for name, value in sampling.items() for word in (f"--{name.replace('_', '-')}", value)]
    captioned(album(tmp_path / "photos", 3), "-p", "What?", *options)
    assert list(said(tmp_path / "captions.jsonl").values()) == [
        alone(vlm, seed, "What?", sampling=Sampling(**sampling)) for seed in range(3)
    ]


def test_a_template_asks_with_what_is_known_of_each(
    vlm: VLM, captioned: Captioned, tmp_path: Path, asked: list[int]
) -> None:
    album(tmp_path / "photos", 4)
    rows = "".join(f"photos/{seed:04}.png,{'very ' * (seed % 2)}nice\n" for seed in range(4))
    (tmp_path / "list.csv").write_text(f"image,mood\n{rows}")
    captioned(tmp_path / "list.csv", "--template", "{{{name}}}: is it {mood}?", "--batch", 2)
    assert list(said(tmp_path / "captions.jsonl").values()) == [
        alone(vlm, seed, f"{{{seed:04}}}: is it {'very ' * (seed % 2)}nice?") for seed in range(4)
    ]
    assert asked == [2, 2]


def test_prompts_of_one_length_go_together(
    captioned: Captioned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[set[int]] = []
    answers = generate.answer_batch

    def seen(model: Any, tokenizer: Any, prompts: Any, **options: Any) -> Any:
        lengths.append({generate.positions(prompt) for prompt in prompts})
        return answers(model, tokenizer, prompts, **options)

    monkeypatch.setattr(generate, "answer_batch", seen)
    album(tmp_path / "photos", 8)
    rows = "".join(f"photos/{seed:04}.png,{'very ' * (seed % 2)}nice\n" for seed in range(8))
    (tmp_path / "list.csv").write_text(f"image,mood\n{rows}")
    captioned(tmp_path / "list.csv", "--template", "Is it {mood}?", "--batch", 4)
    assert len(lengths) == 2
    assert all(len(each) == 1 for each in lengths)


def test_texts_beside_a_tar_s_pictures_can_be_asked_about(
    vlm: VLM, captioned: Captioned, tmp_path: Path
) -> None:
    members = {"1.png": drawn(1), "1.txt": b"a cat", "2.png": drawn(2), "2.json": b'{"txt": "a dog"}'}
    captioned(shard(tmp_path / "0.tar", members), "--template", "Is it {txt}?")
    assert list(said(tmp_path / "captions.jsonl").values()) == [
        alone(vlm, 1, "Is it a cat?"),
        alone(vlm, 2, "Is it a dog?"),
    ]


def test_progress_counts_what_was_done_before(
    captioned: Captioned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []

    @contextmanager
    def bar(what: str, of: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: told.append((done, total))

    monkeypatch.setattr(progress, "bar", bar)
    photos = album(tmp_path / "photos", 8)
    captioned(photos, "--limit", 3)
    assert told == [(done, 3) for done in range(4)]
    told.clear()
    captioned(photos, "--batch", 4)
    assert told[0] == (3, 8)
    assert told[-1] == (8, 8)
    assert told == sorted(told)


# --- formats ---


def test_formats_say_the_same(captioned: Captioned, tmp_path: Path, run: Run) -> None:
    photos = album(tmp_path / "photos", 3)
    (photos / "é\n.png").write_bytes(drawn(9))
    captioned(photos)
    expected = records(tmp_path / "captions.jsonl")
    captioned(photos, out=tmp_path / "captions.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "captions.parquet").to_pylist() == expected
    captioned(photos, out=photos / "metadata.jsonl")
    assert records(photos / "metadata.jsonl") == [
        {"file_name": record["key"], "text": record["caption"]} for record in expected
    ]
    captioned(photos, "--format", "metadata", out=tmp_path / "up.jsonl")
    assert records(tmp_path / "up.jsonl")[0]["file_name"] == "photos/0000.png"
    done = run("caption", photos, "-o", tmp_path / "up2.jsonl", "-m", MODEL, "--format", "xml")
    assert "choose one of jsonl, parquet, metadata" in done.err


def test_the_format_may_change_without_captioning_again(
    captioned: Captioned, tmp_path: Path, asked: list[int]
) -> None:
    photos = album(tmp_path / "photos", 3)
    captioned(photos)
    assert asked == [3]
    captioned(photos, "--format", "metadata")
    assert records(tmp_path / "captions.jsonl")[2].keys() == {"file_name", "text"}
    assert asked == [3]


# --- going on ---


def test_what_is_done_is_not_done_again_and_what_is_new_is(
    captioned: Captioned, tmp_path: Path, asked: list[int]
) -> None:
    photos = album(tmp_path / "photos", 5)
    captioned(photos, "--limit", 2)
    assert list(said(tmp_path / "captions.jsonl")) == ["0000.png", "0001.png"]
    captioned(photos)
    (photos / "0000b.png").write_bytes(drawn(9))
    (photos / "0004.png").unlink()
    captioned(photos)
    assert asked == [2, 3, 1]
    assert list(said(tmp_path / "captions.jsonl")) == [
        "0000.png",
        "0000b.png",
        "0001.png",
        "0002.png",
        "0003.png",
    ]
    first = (tmp_path / "captions.jsonl").read_bytes()
    (tmp_path / "captions.jsonl").unlink()
    captioned(photos)
    assert (tmp_path / "captions.jsonl").read_bytes() == first
    assert len(asked) == 3
    captioned(photos, "--overwrite")
    assert (tmp_path / "captions.jsonl").read_bytes() == first
    assert asked[3:] == [5]
    assert len(lines(tmp_path / "captions.jsonl")) == 5


def test_pictures_that_fail_are_told_with_the_reason_and_can_be_tried_again(
    captioned: Captioned, tmp_path: Path, asked: list[int]
) -> None:
    photos = album(tmp_path / "photos", 5)
    whole = (photos / "0002.png").read_bytes()
    (photos / "0002.png").write_bytes(whole[:60])
    (photos / "0003.png").write_bytes(b"")
    (photos / "broken\nlink.png").symlink_to("nowhere")
    done = captioned(photos, "--batch", 2)
    assert "3 pictures failed" in done.err
    failed = tmp_path / "captions.jsonl.run" / "failed.jsonl"
    assert list(said(tmp_path / "captions.jsonl")) == ["0000.png", "0001.png", "0004.png"]
    reasons = {record["key"]: record["error"] for record in records(failed)}
    assert list(reasons) == ["0002.png", "0003.png", "broken\nlink.png"]
    assert "cut short" in reasons["0002.png"]
    assert "is empty" in reasons["0003.png"]
    assert "No such file" in reasons["broken\nlink.png"]

    captioned(photos, "--batch", 2)  # not tried again
    assert asked == [2, 1]
    (photos / "0002.png").write_bytes(whole)
    assert "2 pictures failed" in captioned(photos, "--retry-failed").err
    assert asked == [2, 1, 1]
    assert list(said(tmp_path / "captions.jsonl"))[2] == "0002.png"
    (photos / "0003.png").write_bytes(whole)
    (photos / "broken\nlink.png").unlink()
    assert "pictures failed" not in captioned(photos, "--retry-failed").err
    assert not failed.exists()
    assert list(said(tmp_path / "captions.jsonl")) == [f"{seed:04}.png" for seed in range(5)]


def test_a_prompt_that_cannot_be_made_fails_alone(captioned: Captioned, tmp_path: Path) -> None:
    album(tmp_path, 4)
    rows: list[dict[str, str]] = [{"image": f"{seed:04}.png", "title": "cat"} for seed in range(4)]
    del rows[0]["title"]
    rows[1]["title"] = "cat " * 9000
    rows[2]["title"] = "<image>"
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    captioned(tmp_path / "list.jsonl", "--template", "Is it {title}? <image>")
    assert list(said(tmp_path / "captions.jsonl")) == [f"{tmp_path}/list.jsonl#4:0003.png"]
    reasons = [record["error"] for record in records(tmp_path / "captions.jsonl.run" / "failed.jsonl")]
    assert "has no field 'title' for the template" in reasons[0]
    assert re.match(r"takes \d+ positions but the model's context is", reasons[1])
    assert "marks 2 place(s)" in reasons[2]


def test_nothing_but_failures_is_a_failure(run: Run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"precious")
    done = run("caption", tmp_path / "photos", "-o", tmp_path / "c.jsonl", "-m", MODEL, "-n", 1)
    assert done.code == 1
    assert "none of 1 pictures could be captioned" in done.err
    assert "is not a picture" in done.err
    assert not (tmp_path / "c.jsonl").exists()
    assert (tmp_path / "c.jsonl.run" / "failed.jsonl").exists()


def test_every_sampling_option_is_of_the_settings() -> None:
    from fastvlm_mlx.caption.ledger import CaptionSettings

    assert set(Sampling.__slots__) <= set(CaptionSettings.__slots__)
