"""`chat` with lines piped in: answers on stdout, one after another; what goes wrong ends it.

In a terminal it is test_chat_terminal's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command import MODEL, Ran, Run
from pictures import TALL, WIDE
from refusals import assert_refused, snapshot
from videos import COLOURS, flat, write

from fastvlm_mlx import VLM, Session
from fastvlm_mlx.terminal.chat import COMMANDS


@pytest.fixture
def chat(run: Run) -> Callable[..., Ran]:
    def chat(*arguments: object, lines: list[str]) -> Ran:
        text = "".join(f"{line}\n" for line in lines)
        return run("chat", "-m", MODEL, "-n", 12, *arguments, stdin=text.encode())

    return chat


def test_a_question_is_answered_as_generate_answers_it(run: Run, chat: Callable[..., Ran]) -> None:
    expected = run("generate", TALL, "-m", MODEL, "-n", 12, "-p", "Hm?")
    assert chat(TALL, lines=["Hm?"]) == expected
    assert chat(lines=[f"/image {TALL}", "Hm?"]) == expected
    assert chat(lines=[f"{TALL} Hm?", "", "/exit", "And?"]) == expected


def test_answers_follow_each_other(vlm_of: Callable[[str], VLM], chat: Callable[..., Ran]) -> None:
    session = Session(vlm_of("apple-fused"), "Be brief.")
    expected = [session.generate("Hm?", [TALL, WIDE], max_tokens=12).text]
    expected += [session.generate(text, max_tokens=12).text for text in ("And?", "So?")]
    done = chat(TALL, WIDE, "--system", "Be brief.", lines=["Hm?", "And?", "So?"])
    assert done == Ran(0, "".join(f"{text}\n" for text in expected), "")


def test_a_conversation_begun_again_is_a_new_one(chat: Callable[..., Ran]) -> None:
    once = chat(TALL, lines=["Hm?"]).out
    assert chat(TALL, lines=["Hm?", "/clear", f"{TALL} Hm?"]).out == 2 * once


def test_another_system_prompt_counts_from_the_next_question(chat: Callable[..., Ran]) -> None:
    given = chat("--system", "Be brief.", lines=["Hm?"]).out
    assert chat(lines=["/system Be brief.", "Hm?"]).out == given
    assert chat(lines=["/system -", "Hm?"]).out == chat("--system", "", lines=["Hm?"]).out


def test_a_saved_conversation_goes_on(chat: Callable[..., Ran], tmp_path: Path) -> None:
    file = tmp_path / "talk"
    whole = chat(TALL, lines=["Hm?", "And?"]).out
    begun = chat(TALL, lines=["Hm?", f"/save {file}"])
    assert begun.code == 0
    assert "saved" in begun.err
    assert begun.out + chat("--resume", file, lines=["And?"]).out == whole


def test_tiles_are_asked_about_as_generate_does_and_told_as_one_picture(
    run: Run, chat: Callable[..., Ran], tmp_path: Path
) -> None:
    how = ("--image-mode", "tiles", "--grid", "2x2", "--image-size", 64)
    expected = run("generate", WIDE, TALL, "-m", MODEL, "-n", 12, "-p", "Hm?", *how).out
    done = chat(WIDE, TALL, *how, lines=["Hm?", "/history", f"/save {tmp_path / 'talk'}", "And?"])
    assert done.out.startswith(expected)
    assert "> [2 picture(s)] Hm?\n" in done.err
    assert "<image>" not in done.err
    again = chat("--resume", tmp_path / "talk", lines=["/history", "And?"])
    assert "> [2 picture(s)] Hm?\n" in again.err
    assert expected + again.out == done.out


def test_a_native_picture_is_asked_about_as_generate_does(run: Run, chat: Callable[..., Ran]) -> None:
    how = ("--image-mode", "native", "--image-size", 128)
    expected = run("generate", WIDE, "-m", MODEL, "-n", 12, "-p", "Hm?", *how)
    assert chat(WIDE, *how, lines=["Hm?"]) == expected


def test_a_video_is_asked_about_as_generate_does(run: Run, chat: Callable[..., Ran], tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", [flat(colour) for colour in COLOURS])
    how = ("--image-size", 64)
    expected = run("generate", path, TALL, "-m", MODEL, "-n", 12, "-p", "Hm?", *how)
    assert chat(path, TALL, *how, lines=["Hm?"]) == expected
    done = chat(*how, lines=[f"{path} {TALL} Hm?", "/history"])
    assert done.out == expected.out
    assert "> [7 picture(s)] Hm?\n" in done.err


def test_help_names_every_command(chat: Callable[..., Ran]) -> None:
    done = chat(lines=["/help"])
    assert done.out == ""
    assert [name for name in COMMANDS if name not in done.err] == []


def test_no_lines_are_no_answers(chat: Callable[..., Ran]) -> None:
    assert chat(TALL, lines=[]) == Ran(0, "", "")


@pytest.mark.parametrize(
    ("lines", "names", "repair"),
    [
        (["/imagine"], "no command and no file /imagine", "/help"),
        (["/image"], "/image takes a picture", "path"),
        (["/image /nowhere.png"], "/nowhere.png", "readable picture"),
        (["/image -"], "standard input", "name a file"),
        (["/save"], "/save takes", "file"),
        (["/save /nowhere/talk"], "no folder /nowhere", "make it first"),
        (["<image>?"], "marks 1 place", "one picture for each mark"),
        (["word " * 9000], "positions and the model reads", "shorten"),
    ],
    ids=lambda value: value[0][:20] if isinstance(value, list) else "",
)
def test_a_bad_line_is_one_line_and_the_end(
    chat: Callable[..., Ran], tmp_path: Path, lines: list[str], names: str, repair: str
) -> None:
    assert_refused(chat(lines=[*lines, "Hm?"]), names, repair)
    assert snapshot(tmp_path) == {}


def test_bytes_that_are_no_text_are_read_as_such(run: Run) -> None:
    done = run("chat", "-m", MODEL, "-n", 2, stdin=b"what\xff?\n")
    assert (done.code, done.err) == (0, "")
