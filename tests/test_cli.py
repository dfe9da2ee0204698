"""The command line as a user meets it: answers on stdout, all else on stderr.

`convert` and `doctor` are test_cli_convert's, `eval` evaluate/'s, signals, pipes and cold starts
test_cli_processes's, input that is wrong bad_input's.
"""

from __future__ import annotations

import functools
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator

import pytest
import typer
from checkpoints import LAYOUT_OF, golden
from command import MODEL, Ran, Run, in_a_process
from pictures import IMAGES, TALL, WIDE

from fastvlm_mlx import __version__, cli
from fastvlm_mlx.verbs.sections import SECTIONS

ROTATED = IMAGES / "exif_rot6.jpg"
VERBS = [command.name for command in cli.app.registered_commands if command.name]
TIMINGS = ("vision_s", "prefill_s", "decode_s", "tokens_per_s", "peak_bytes")


@pytest.fixture
def ask(run: Run) -> Run:
    """`generate` on a golden checkpoint: 12 tokens are enough to tell answers apart."""

    def ask(*arguments: object, stdin: bytes = b"") -> Ran:
        done = run("generate", "-m", MODEL, "-n", 12, *arguments, stdin=stdin)
        assert done.code == 0, done.err
        return done

    return ask


@pytest.fixture
def ask_json(ask: Run) -> Callable[..., dict[str, object]]:
    def ask_json(*arguments: object, stdin: bytes = b"") -> dict[str, object]:
        return json.loads(ask("--json", *arguments, stdin=stdin).out)

    return ask_json


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The golden pictures, served on this machine."""

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Silent, directory=str(IMAGES))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


# --- version and help ---


def test_version_is_the_package_s(run: Run) -> None:
    assert run("--version") == Ran(0, f"{__version__}\n", "")


@pytest.mark.parametrize("columns", [80, 160])
@pytest.mark.parametrize("verb", VERBS)
def test_help_mentions_every_option_whole(
    run: Run, monkeypatch: pytest.MonkeyPatch, verb: str, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    done = run(verb, "--help")
    assert (done.code, done.err) == (0, "")
    command = typer.main.get_command(cli.app).commands[verb]  # type: ignore[attr-defined]
    options = [option for parameter in command.params for option in parameter.opts if option[0] == "-"]
    assert [option for option in options if not re.search(rf"{option}(?![\w-])", done.out)] == []


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches_by_example(run: Run, verb: str) -> None:
    text = " ".join(run(verb, "--help").out.split())
    examples = re.findall(rf"(?<!Usage: )fastvlm-mlx {verb} \S", text)
    assert examples, text


def test_help_groups_options_under_headings(run: Run) -> None:
    heading = "Options:"
    found: dict[str, str] = {}
    for line in run("generate", "--help").out.splitlines():
        if re.fullmatch(r"\S.*:", line):
            heading = line
        for option in re.findall(r"^ +(?:-\w, )?(--[\w-]+)", line):
            found[option] = heading
    expected = {
        "--prompt": "Input:",
        "--image-mode": "Input:",
        "--model": "Model:",
        "--top-p": "Sampling:",
        "--kv-bits": "Speed and memory:",
        "--json": "Output:",
        "--help": "Other options:",
    }
    assert {option: found.get(option) for option in expected} == expected


def test_every_name_in_the_sections_of_help_is_an_option_of_one_section() -> None:
    named = [name for names in SECTIONS.values() for name in names.split()]
    commands = typer.main.get_command(cli.app).commands.values()  # type: ignore[attr-defined]
    real = {parameter.name for command in commands for parameter in command.params}
    assert sorted(named) == sorted(set(named) & real)


@pytest.mark.parametrize(
    ("words", "completed_to"),
    [("fastvlm-mlx ge", "generate"), ("fastvlm-mlx generate --image-s", "--image-size")],
)
def test_a_shell_completes_verbs_and_options(words: str, completed_to: str) -> None:
    at = str(len(words.split()) - 1)
    done = in_a_process(_FASTVLM_MLX_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=at)
    assert (done.code, done.out.split(), done.err) == (0, [completed_to], "")


def test_help_names_every_verb(run: Run) -> None:
    done = run("--help")
    assert (done.code, done.err) == (0, "")
    assert [verb for verb in VERBS if not re.search(rf"\b{verb}\b", done.out)] == []


@pytest.mark.parametrize("arguments", [(), *((verb,) for verb in VERBS if verb not in cli._ALONE)])
def test_without_arguments_help_is_shown_and_nothing_is_complained_of(
    run: Run, arguments: tuple[str, ...]
) -> None:
    done = run(*arguments)
    assert "Usage:" in done.out
    assert done.err.strip() == ""


# --- generate ---


@pytest.mark.parametrize("name", [name for name in LAYOUT_OF if name != "mlx-vlm-f32"])
def test_greedy_answers_are_the_same_for_every_layout(run: Run, ask: Run, name: str) -> None:
    assert run("generate", TALL, "-m", golden(name), "-n", 12) == ask(TALL)


def test_only_the_answer_is_on_stdout(ask: Run) -> None:
    done = ask(TALL)
    assert done.out.endswith("\n")
    assert done.out.strip()
    assert done.err == ""


def test_json_has_the_same_answer_and_its_timings(ask: Run) -> None:
    done = ask(TALL, "--json")
    answer = json.loads(done.out)
    assert done.err == ""
    assert done.out.count("\n") == 1
    assert answer["text"] + "\n" == ask(TALL).out
    assert (answer["model"], answer["reason"], answer["tokens"]) == (str(MODEL), "length", 12)
    assert (answer["image_tokens"], answer["text_tokens"]) == (16, 52)
    assert all(answer[timing] > 0 for timing in TIMINGS)


def test_stats_go_to_stderr_and_leave_the_answer_alone(ask: Run) -> None:
    done = ask(TALL, "--stats")
    assert done.out == ask(TALL).out
    for word in ("vision", "prefill", "decode", "memory", "16 picture tokens", "12 tokens", "length"):
        assert word in done.err


def test_no_tokens_are_an_empty_answer(ask: Run, ask_json: Callable[..., dict[str, object]]) -> None:
    assert ask(TALL, "--max-tokens", 0) == Ran(0, "\n", "")
    answer = ask_json(TALL, "--max-tokens", 0)
    assert (answer["text"], answer["tokens"], answer["reason"]) == ("", 0, "length")


def test_greedy_is_deterministic_and_takes_no_notice_of_the_seed(ask: Run) -> None:
    assert ask(TALL, "--seed", 1).out == ask(TALL, "--seed", 2).out == ask(TALL).out


def test_seeds_repeat_and_differ(ask: Run) -> None:
    answers = [ask(TALL, "--temp", 1, "--seed", seed).out for seed in (1, 1, 2, 3)]
    assert answers[0] == answers[1]
    assert len(set(answers)) == 3


@pytest.mark.parametrize(
    "options",
    [("--top-k", 1), ("--top-p", 1e-6), ("--min-p", 1), ("--temperature", 0)],
    ids=lambda options: options[0],
)
def test_filters_that_leave_one_token_are_greedy(ask: Run, options: tuple[object, ...]) -> None:
    assert ask(TALL, "--temp", 1, "--seed", 7, *options).out == ask(TALL).out


def test_a_repetition_penalty_changes_the_answer(ask: Run) -> None:
    assert ask(TALL, "-n", 40, "--repetition-penalty", 1.5).out != ask(TALL, "-n", 40).out


def test_a_question_without_a_picture_is_answered(ask_json: Callable[..., dict[str, object]]) -> None:
    answer = ask_json("-p", "What is 3+4?")
    assert (answer["image_tokens"], answer["tokens"]) == (0, 12)


def test_pictures_are_arguments_or_options_in_order(ask: Run) -> None:
    both = ask(TALL, WIDE).out
    assert ask(TALL, "--image", WIDE).out == both
    assert ask("--image", TALL, "--image", WIDE).out == both
    assert ask(WIDE, TALL).out != both


def test_a_picture_from_standard_input_is_the_file_s(ask: Run) -> None:
    assert ask("-", stdin=TALL.read_bytes()).out == ask(TALL).out
    assert ask("-", WIDE, stdin=TALL.read_bytes()).out == ask(TALL, WIDE).out


def test_a_picture_from_an_address_is_the_file_s(ask: Run, address: str) -> None:
    assert ask(f"{address}/{TALL.name}").out == ask(TALL).out


def test_marks_place_the_pictures(ask: Run, ask_json: Callable[..., dict[str, object]]) -> None:
    marked = ask(TALL, WIDE, "-p", "First <image> then <image>: what changed?").out
    assert marked != ask(TALL, WIDE, "-p", "First then : what changed?").out
    assert ask(TALL, "-p", "<image>\nWhat?").out == ask(TALL, "-p", "What?").out
    assert ask_json(TALL, WIDE, "-p", "First <image> then <image>: what changed?")["image_tokens"] == 32


@pytest.mark.parametrize(("size", "tokens"), [(64, 1), (128, 4), (320, 25)])
def test_image_size_sets_how_many_tokens_a_picture_takes(
    ask_json: Callable[..., dict[str, object]], size: int, tokens: int
) -> None:
    assert ask_json(TALL, "--image-size", size)["image_tokens"] == tokens


def test_image_modes_differ_and_pad_is_the_default(ask: Run) -> None:
    pad, crop, stretch = (ask(WIDE, "--image-mode", mode).out for mode in ("pad", "crop", "stretch"))
    assert ask(WIDE).out == pad
    assert len({pad, crop, stretch}) == 3


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        (("native",), 4 * 3),  # 301×200
        (("tiles", "--grid", "2x1"), 3 * 16),
        (("tiles", "--grid", "3x2"), 7 * 16),
        (("tiles",), 3 * 16),
        (("tiles", "--max-tiles", 1), 16),
    ],
    ids=str,
)
def test_shapes_and_tiles_take_their_tokens(
    ask_json: Callable[..., dict[str, object]], options: tuple[object, ...], tokens: int
) -> None:
    assert ask_json(WIDE, "--image-mode", *options)["image_tokens"] == tokens


def test_tiles_are_read_where_the_picture_s_mark_is(ask: Run) -> None:
    tiles = ("--image-mode", "tiles", "--grid", "2x1", "--image-size", 128)
    first = ask(WIDE, TALL, *tiles).out
    assert ask(WIDE, TALL, *tiles, "-p", "<image>\n<image>\nDescribe the image.").out == first
    assert ask(TALL, WIDE, *tiles).out != first


def test_reference_ignores_the_orientation(ask: Run) -> None:
    assert ask(ROTATED, "--reference").out != ask(ROTATED).out


def test_the_system_prompt_is_replaced_or_left_out(
    ask: Run, ask_json: Callable[..., dict[str, object]]
) -> None:
    assert ask(TALL, "--system", "You are a helpful assistant.").out == ask(TALL).out
    assert ask(TALL, "--system", "Answer in Latin.").out != ask(TALL).out
    assert ask_json(TALL, "--system", "")["text_tokens"] < ask_json(TALL)["text_tokens"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtype_is_computed_in(ask: Run, dtype: str) -> None:
    assert ask(TALL, "--dtype", dtype).out.strip()


def test_the_model_comes_from_the_environment_unless_it_is_given(
    run: Run, ask: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ask(TALL).out
    monkeypatch.setenv(cli.MODEL_VARIABLE, str(MODEL))
    assert run("generate", TALL, "-n", 12).out == expected
    monkeypatch.setenv(cli.MODEL_VARIABLE, "/nowhere")
    assert run("generate", TALL, "-n", 12, "-m", MODEL).out == expected
