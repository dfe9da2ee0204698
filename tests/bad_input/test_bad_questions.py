"""Questions with an option that cannot be, about a good picture to a good model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from command import MODEL
from pictures import TALL
from refusals import Case, Make

GENERATE_HELP = r"fastvlm-mlx generate --help"


def question(*options: object) -> Make:
    """About a good picture to a good model."""
    return lambda at: ["generate", TALL, "-m", MODEL, *options]


QUESTIONS = {
    "nothing asked": Case(lambda at: ["generate", "-m", MODEL], "nothing to do", "--prompt"),
    "an empty prompt": Case(question("-p", " "), "--prompt", "ask something"),
    "fewer pictures than marks": Case(
        question("-p", "<image> and <image>"), r"marks 2 place.*1 picture", "give one picture for each mark"
    ),
    "more pictures than marks": Case(
        lambda at: ["generate", TALL, TALL, "-m", MODEL, "-p", "<image>?"],
        r"marks 1 place.*2 picture",
        "give one picture for each mark",
    ),
    "a mark in the system prompt": Case(question("--system", "<image>"), "system prompt", "user's text"),
    "image size 100": Case(question("--image-size", 100), "image.size 100", "choose 64 or 128"),
    "image size -64": Case(question("--image-size", -64), "image.size -64", "choose 64"),
    "image size 0": Case(question("--image-size", 0), "image.size 0", "choose 64"),
    "image size 1,000,000": Case(question("--image-size", 1_000_000), "image.size", "choose 16384 or less"),
    "unknown image mode": Case(question("--image-mode", "zoom"), "image.mode 'zoom'", "choose one of pad"),
    "a grid without tiles": Case(question("--grid", "2x2"), "image mode has no tiles", "choose tiles"),
    "tiles of another mode": Case(
        question("--image-mode", "native", "--max-tiles", 3), "mode native has no tiles", "choose tiles"
    ),
    "no grid": Case(question("--image-mode", "tiles", "--grid", "2by2"), "no grid '2by2'", "such as 2x2"),
    "an empty grid": Case(question("--image-mode", "tiles", "--grid", "0x2"), "0x2", "choose 1x1"),
    "no tiles": Case(question("--image-mode", "tiles", "--max-tiles", 0), "max-tiles is 0", "choose 1"),
    "a grid of more than the most tiles": Case(
        question("--image-mode", "tiles", "--grid", "3x3", "--max-tiles", 4), "9 tiles", "smaller grid"
    ),
    "a grid that is too large": Case(
        question("--image-mode", "tiles", "--grid", "9999999x1"), "pixels", "fewer tiles"
    ),
    "a grid that the picture is too small for": Case(
        question("--image-mode", "tiles", "--grid", "100x1"), "90×241 has too few pixels", "leave the grid"
    ),
    "tiles that the context has no room for": Case(
        question("--image-mode", "tiles", "--grid", "20x20", "--image-size", 512),
        "400 tiles and their overview take 25664 positions",
        "smaller --grid",
    ),
    "unknown dtype": Case(question("--dtype", "int4"), "dtype 'int4'", "choose one of float16"),
    "temperature -1": Case(question("--temp", -1), r"temperature is -1", "must be 0 .* or more"),
    "temperature nan": Case(question("--temp", "nan"), r"temperature is nan", "must be 0 .* or more"),
    "temperature hot": Case(question("--temp", "hot"), "--temperature", GENERATE_HELP, 2),
    "top_p 0": Case(question("--top-p", 0), "top.p is 0", "above 0 and at most 1"),
    "top_p 2": Case(question("--top-p", 2), "top.p is 2", "above 0 and at most 1"),
    "top_k -1": Case(question("--top-k", -1), "top.k is -1", "0 .* or more"),
    "min_p 2": Case(question("--min-p", 2), "min.p is 2", "from 0 .* to 1"),
    "repetition penalty 0": Case(question("--repetition-penalty", 0), "repetition.penalty", "above 0"),
    "seed -1": Case(question("--seed", -1), "seed is -1", "must be"),
    "seed 2^64": Case(question("--seed", 2**64), "seed", "must be|choose"),
    "max-tokens -1": Case(question("--max-tokens", -1), "--max-tokens", GENERATE_HELP, 2),
    "unknown option": Case(question("--promt", "x"), "--promt", GENERATE_HELP, 2),
    "unknown verb": Case(lambda at: ["generat", TALL], "'generat'", "fastvlm-mlx --help", 2),
    "half a character": Case(question("-p", "what\udcff?"), "half a character", "pass valid Unicode"),
    "chat about standard input": Case(
        lambda at: ["chat", "-", "-m", MODEL], "questions", "give a picture's path"
    ),
    "chat about no picture": Case(lambda at: ["chat", at / "no.png", "-m", MODEL], "no.png", "readable"),
    "chat, image size 100": Case(
        lambda at: ["chat", TALL, "-m", MODEL, "--image-size", 100], "100", "choose 64 or 128"
    ),
    "chat, a grid without tiles": Case(
        lambda at: ["chat", TALL, "-m", MODEL, "--grid", "2x2"], "image mode has no tiles", "choose tiles"
    ),
    "chat, temperature -1": Case(
        lambda at: ["chat", "-m", MODEL, "--temp", -1], "temperature", "0 .* or more"
    ),
    "chat, a mark in the system prompt": Case(
        lambda at: ["chat", "-m", MODEL, "--system", "<image>"], "system prompt", "user's text"
    ),
    "resuming nothing": Case(
        lambda at: ["chat", "-m", MODEL, "--resume", at / "gone"], "gone: no such file", "/save"
    ),
    "resuming what is no conversation": Case(
        lambda at: ["chat", "-m", MODEL, "--resume", TALL], "no saved conversation", "name a file"
    ),
    "doctor of nothing": Case(lambda at: ["doctor", at / "gone"], "gone", "give a model directory"),
}


@pytest.mark.parametrize("case", QUESTIONS.values(), ids=QUESTIONS)
def test_a_bad_question_is_one_line_and_changes_nothing(
    expect_refusal: Callable[[Case], None], case: Case
) -> None:
    expect_refusal(case)
