"""`eval` as a user meets it: scores told and written, nothing asked twice, even after it was killed."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from command import MODEL, PYTHON, Ran, Run, completed
from pictures import IMAGES

from fastvlm_mlx import VLM, ImageOptions
from fastvlm_mlx.evaluate.data import read
from fastvlm_mlx.evaluate.metrics import AUTO, METRICS
from fastvlm_mlx.evaluate.predictions import EvalSettings
from fastvlm_mlx.evaluate.run import batch_order
from fastvlm_mlx.inference import generate
from fastvlm_mlx.models import lora

PICTURES = ("tall.png", "gray.png", "wide_odd_pad.png", "rgba_alpha.png")
QUESTIONS = ("What is this?", "Where is it, and why?")
TOKENS = 6

Rows = list[dict[str, Any]]


def written(folder: Path, rows: Rows) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def rows(vlm_of: Callable[[str], VLM]) -> Rows:
    """Two questions about each of four pictures, with what the model itself answers."""
    vlm = vlm_of("apple-fused")
    asked = [(picture, question) for picture in PICTURES for question in QUESTIONS]
    prompts = [vlm.prompt(question, [IMAGES / picture]) for picture, question in asked]
    said = [vlm.generate(prompt, max_tokens=TOKENS).text for prompt in prompts]
    return [
        {"image": picture, "question": question, "answer": answer, "category": question.split()[0].lower()}
        for (picture, question), answer in zip(asked, said, strict=True)
    ]


@pytest.fixture
def evaluated(run: Run, tmp_path: Path) -> Callable[..., Ran]:
    def evaluated(rows: Rows, *options: object) -> Ran:
        data = written(tmp_path, rows)
        done = run("eval", MODEL, data, "--images", IMAGES, "-n", TOKENS, *options)
        assert (done.code, done.err) == (0, "")
        return done

    return evaluated


def table(done: Ran) -> dict[str, list[str]]:
    """The lines after the first empty one: name -> the rest."""
    lines = done.out.split("\n\n", 1)[1].splitlines()
    return {line.split()[0]: line.split()[1:] for line in lines if line.strip()}


# --- scores ---


def test_scores_are_told_by_category_and_over_all(rows: Rows, evaluated: Callable[..., Ran]) -> None:
    wrong = {"answer": "something else"}
    done = evaluated([*rows[:3], *(row | wrong for row in rows[3:])])
    model, data, asked = done.out.splitlines()[:3]
    assert model == f"model    {MODEL}, float32"
    assert data.startswith("data     data.jsonl, sha256 ")
    assert asked == f"options  pictures of 256, up to {TOKENS} tokens"
    assert table(done) == {
        "category": ["rows", "exact"],
        "what": ["4", "50.00"],
        "where": ["4", "25.00"],
        "all": ["8", "37.50"],
    }


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_batches_change_nothing(rows: Rows, evaluated: Callable[..., Ran], batch: int) -> None:
    assert table(evaluated(rows, "--batch", batch))["all"] == ["8", "100.00"]


def test_the_same_is_told_in_files(rows: Rows, evaluated: Callable[..., Ran], tmp_path: Path) -> None:
    options = ("--json", tmp_path / "scores.json", "--markdown", tmp_path / "scores.md")
    done = evaluated(rows, *options, "--prompt-suffix", "In | one word.")
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    found = json.loads(files["scores.json"])
    assert (found["model"], found["dtype"], found["quantization"]) == (str(MODEL), "float32", "none")
    assert (found["data"], found["metric"], found["prompt_suffix"]) == (
        "data.jsonl",
        "exact",
        "In | one word.",
    )
    assert (found["rows"], found["yes_no"]) == (8, None)
    assert f"{100 * found['score']:.2f}" == table(done)["all"][1]
    assert {name: score["rows"] for name, score in found["categories"].items()} == {"what": 4, "where": 4}
    assert f"| all | 8 | {table(done)['all'][1]} |" in files["scores.md"]
    assert evaluated(rows, *options, "--prompt-suffix", "In | one word.") == done
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_yes_and_no_are_reported_as_pope_does(evaluated: Callable[..., Ran], tmp_path: Path) -> None:
    rows = [
        {"image": picture, "text": "Is it?", "label": label}
        for picture, label in zip(PICTURES, ("yes", "no", "yes", "no"), strict=True)
    ]
    found = table(evaluated(rows, "--metric", "yesno", "--json", tmp_path / "scores.json"))
    assert found["all"] == ["4", "50.00"]  # noise says no no, and that is a yes
    assert (found["accuracy"], found["precision"]) == (["50.00"], ["50.00"])
    assert (found["recall"], found["F1"], found["said"]) == (["100.00"], ["66.67"], ["yes", "100.00"])
    assert json.loads((tmp_path / "scores.json").read_text())["yes_no"]["f1"] == 0.666667


def test_ten_answers_are_ten_people(evaluated: Callable[..., Ran], rows: Rows) -> None:
    crowd = [row | {"answers": [row["answer"]] * 2 + ["else"] * 8} for row in rows]
    found = table(evaluated(crowd))
    assert found["category"] == ["rows", "vqa"]
    assert found["all"] == ["8", "60.00"]


def test_the_suffix_and_the_size_are_asked_with(rows: Rows, evaluated: Callable[..., Ran]) -> None:
    for option in (("--prompt-suffix", "Answer in Latin."), ("--image-size", 128)):
        assert float(table(evaluated(rows, *option))["all"][1]) < 100


@pytest.mark.parametrize(
    ("options", "how", "label"),
    [
        (("native",), {}, "256 native"),
        (("tiles",), {}, "256 tiles"),
        (("tiles", "--max-tiles", 2), {"max_tiles": 2}, "256 tiles at most 2"),
        (("tiles", "--grid", "2x1"), {"grid": (2, 1)}, "256 tiles 2x1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_shapes_and_tiles_are_asked_with(
    vlm_of: Callable[[str], VLM],
    rows: Rows,
    evaluated: Callable[..., Ran],
    options: tuple[object, ...],
    how: dict[str, Any],
    label: str,
) -> None:
    vlm, answered = vlm_of("apple-fused"), []
    for row in rows:
        shown = ImageOptions(mode=str(options[0]), **how)
        prompt = vlm.prompt(row["question"], [IMAGES / row["image"]], options=shown)
        answered.append(row | {"answer": vlm.generate(prompt, max_tokens=TOKENS).text})
    done = evaluated(answered, "--image-mode", *options)
    assert done.out.splitlines()[2] == f"options  pictures of {label}, up to {TOKENS} tokens"
    assert table(done)["all"] == ["8", "100.00"]


def test_the_blind_do_worse(rows: Rows, evaluated: Callable[..., Ran]) -> None:
    done = evaluated(rows, "--blind")
    assert "blind" in done.out.splitlines()[2]
    assert float(table(done)["all"][1]) < 100


def test_quantized_models_are_named_so(
    run: Run, rows: Rows, tmp_path: Path, directory_of: Callable[[str], Path]
) -> None:
    from fastvlm_mlx.convert.quantize import RECIPES
    from fastvlm_mlx.convert.run import convert

    convert(MODEL, tmp_path / "model", recipe=RECIPES["4bit"], group_size=32)
    data = written(tmp_path, rows[:1])
    done = run("eval", tmp_path / "model", data, "--images", IMAGES, "-n", 1)
    assert "quantized (4 bit in groups of 32: " in done.out.splitlines()[0]


def test_help_names_every_metric(run: Run) -> None:
    assert "|".join((AUTO, *METRICS)) in run("eval", "--help").out


def test_rows_that_can_share_work_are_neighbours(vlm_of: Callable[[str], VLM], tmp_path: Path) -> None:
    def row(picture: str, question: str) -> dict[str, Any]:
        return {"image": picture, "question": question, "answer": "x"}

    short, longer, longest = "What?", "What is it?", "What is it, and where, and why?"
    data = read(
        written(
            tmp_path,
            [
                row("a", longest),
                row("b", short),
                row("c", longer),
                row("a", short),
                row("d", short),
                row("b", longest),
            ],
        )
    )
    settings = EvalSettings("", "", "", "", "", "", "exact", 256, TOKENS, "", False, image_mode="pad")
    order = [
        (row.pictures[0].name, row.question) for row in batch_order(vlm_of("apple-fused"), data, settings)
    ]
    assert order == [
        *(("b", short), ("b", longest), ("d", short)),
        ("c", longer),
        *(("a", short), ("a", longest)),
    ]


# --- predictions ---


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


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


def test_predictions_say_what_was_asked_and_answered(
    rows: Rows, evaluated: Callable[..., Ran], tmp_path: Path
) -> None:
    path = tmp_path / "said.jsonl"
    evaluated([rows[0] | {"id": "first"}, rows[1] | {"answer": "else"}], "--predictions", path)
    head, *found = records(path)
    assert head["model"] == str(MODEL)
    first, second = sorted(found, key=lambda record: record["line"])
    assert first == {
        "line": 1,
        "id": "first",
        "question": rows[0]["question"],
        "answers": [rows[0]["answer"]],
        "prediction": rows[0]["answer"].strip(),
        "score": 1.0,
    }
    assert (second["line"], second["id"], second["score"]) == (2, "2", 0.0)


def test_what_was_asked_is_not_asked_again(
    rows: Rows, evaluated: Callable[..., Ran], tmp_path: Path, asked: list[int]
) -> None:
    options = ("--predictions", tmp_path / "said.jsonl", "--batch", 3)
    few = evaluated(rows, *options, "--limit", 2)
    assert table(few)["all"][0] == "2"
    whole = evaluated(rows, *options)
    content = (tmp_path / "said.jsonl").read_bytes()
    assert evaluated(rows, *options) == whole
    assert evaluated(rows, *options, "--limit", 2) == few
    assert asked == [2, 3, 3]
    assert (tmp_path / "said.jsonl").read_bytes() == content


def test_answers_of_other_weights_at_the_same_path_are_not_taken(
    rows: Rows, run: Run, tmp_path: Path
) -> None:
    model = shutil.copytree(MODEL, tmp_path / "model")
    data = written(tmp_path, rows)
    options = (
        "eval",
        model,
        data,
        "--images",
        IMAGES,
        "-n",
        TOKENS,
        "--predictions",
        tmp_path / "said.jsonl",
    )
    assert run(*options).code == 0
    weights = dict(mx.load(str(model / "model.safetensors")))
    name = next(name for name in weights if name.endswith("layers.0.mlp.down_proj.weight"))
    weights[name][-1, -1] += 0.5  # one value, and the last one
    mx.save_safetensors(str(model / "model.safetensors"), weights)
    told = run(*options)
    assert told.code == 1
    assert "weights" in told.err
    assert len(told.err.splitlines()) == 1


def test_an_adapter_is_scored_and_told_apart(
    rows: Rows, run: Run, tmp_path: Path, vlm_of: Callable[[str], VLM]
) -> None:
    width, path = vlm_of("apple-fused").config.text.hidden_size, "language.layers.0.attention.out"
    pair = {f"{path}.lora_a": mx.random.normal((width, 8)), f"{path}.lora_b": mx.random.normal((8, width))}
    lora.write(tmp_path / "adapter", lora.Adapter("it", lora.LoRASettings(), pair))
    data = written(tmp_path, rows)
    options = ("eval", MODEL, data, "--images", IMAGES, "-n", TOKENS)
    with_it = ("--adapter-path", tmp_path / "adapter", "--predictions", tmp_path / "said.jsonl")
    plain, adapted = run(*options), run(*options, *with_it)
    assert adapted.code == 0
    assert table(plain)["all"] != table(adapted)["all"]
    assert run(*options, "--predictions", tmp_path / "said.jsonl").code == 1


# Runs the command and kills it as the `moment`-th line is written, `share` per cent of which is on disk.
KILLER = """
import os, signal, sys
from fastvlm_mlx import cli
from fastvlm_mlx.files import journal
moment, share, *sys.argv[1:] = sys.argv[1:]
append, lines = journal.append, []

def killed(file, line):
    lines.append(line)
    if len(lines) == int(moment):
        append(file, line[: len(line) * int(share) // 100])
        os.kill(os.getpid(), signal.SIGKILL)
    append(file, line)

journal.append = killed
cli.main()
"""


@pytest.mark.parametrize(("moment", "share"), [(1, 20), (1, 90), (4, 0), (8, 99)])
def test_a_killed_run_goes_on_where_it_was(
    rows: Rows, evaluated: Callable[..., Ran], tmp_path: Path, asked: list[int], moment: int, share: int
) -> None:
    options = ("--batch", 3, "--predictions")
    whole = evaluated(rows, *options, tmp_path / "whole.jsonl")
    expected = (tmp_path / "whole.jsonl").read_bytes()
    asked.clear()

    said = tmp_path / "said.jsonl"
    command = (*PYTHON, "-c", KILLER, str(moment), str(share), "eval", str(MODEL))
    data = written(tmp_path, rows)
    died = completed(command, data, "--images", IMAGES, "-n", TOKENS, *options, said)
    assert died.code == -signal.SIGKILL
    left = said.read_bytes()
    assert expected.startswith(left)

    assert evaluated(rows, *options, said) == whole
    assert said.read_bytes() == expected
    assert sum(asked) == len(rows) - max(0, left.count(b"\n") - 1)
