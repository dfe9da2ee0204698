"""The command line as a user meets it: answers on stdout, all else on stderr, quiet when interrupted.

Most cases call the real entry in this process; what needs a process of its own (signals, pipes, a cold
start) has one. Input that is wrong is test_bad_input's.
"""

from __future__ import annotations

import functools
import http.server
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from checkpoints import GOLDEN, LAYOUT_OF, golden

from fastvlm_mlx import __version__, cli

IMAGES = GOLDEN / "images"
TALL, WIDE, GRAY = IMAGES / "tall.png", IMAGES / "wide_odd_pad.png", IMAGES / "gray.png"
ROTATED = IMAGES / "exif_rot6.jpg"
MODEL = golden("apple-fused")
COMMAND = (sys.executable, "-W", "error", "-m", "fastvlm_mlx")
VERBS = [command.callback.__name__ for command in cli.app.registered_commands if command.callback]
HEAVY = ("transformers", "mlx_lm", "mlx_vlm", "huggingface_hub", "torch", "coremltools", "starlette")
TIMINGS = ("vision_s", "prefill_s", "decode_s", "tokens_per_s", "peak_bytes")


@dataclass(frozen=True)
class Ran:
    code: object
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The installed command's entry, in this process."""
    monkeypatch.delenv(cli.MODEL_VARIABLE, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "argv", ["fastvlm-mlx", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return Ran(left.value.code, *capfd.readouterr())

    return run


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
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def in_shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


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


def test_help_names_every_verb(run: Run) -> None:
    done = run("--help")
    assert (done.code, done.err) == (0, "")
    assert [verb for verb in VERBS if not re.search(rf"\b{verb}\b", done.out)] == []


@pytest.mark.parametrize("arguments", [(), *((verb,) for verb in VERBS)])
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


def test_a_picture_from_an_address_is_the_file_s(
    ask: Run, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
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


# --- convert ---

CONVERSIONS = {
    "plain": (),
    "-q": ("-q",),
    "8 bits": ("-q", "--q-bits", 8),
    "groups of 32": ("-q", "--q-group-size", 32),
    "mixed": ("--recipe", "mixed-4-8"),
    "vision too": ("-q", "--quantize-vision"),
    "float16": ("--dtype", "float16"),
    "bfloat16": ("--dtype", "bfloat16"),
    "mixed, in float16": ("--recipe", "mixed-4-8", "--quantize-vision", "--dtype", "float16"),
}


@pytest.mark.parametrize("source", LAYOUT_OF)
def test_a_converted_checkpoint_answers_as_its_source(run: Run, tmp_path: Path, source: str) -> None:
    out = tmp_path / "out"
    converted = run("convert", golden(source), "-o", out)
    assert (converted.code, converted.out) == (0, "")
    assert str(out) in converted.err
    assert hidden(tmp_path) == []
    arguments = (TALL, WIDE, "-n", 24, "-p", "First <image> then <image>?")
    assert run("generate", *arguments, "-m", out) == run("generate", *arguments, "-m", golden(source))


@pytest.mark.parametrize("options", CONVERSIONS.values(), ids=CONVERSIONS)
def test_what_was_converted_is_complete_and_answers(
    run: Run, tmp_path: Path, options: tuple[object, ...]
) -> None:
    out = tmp_path / "out"
    assert run("convert", golden("apple-train"), "--output", out, *options).code == 0
    names = {path.name for path in out.iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    packed = json.loads((out / "config.json").read_text())["quantization"]
    asked = "-q" in options or "--recipe" in options
    assert bool(packed) == asked
    assert any(path.startswith("vision.") for path in packed) == ("--quantize-vision" in options)
    if asked:
        bits = {"-q": {4}, "--recipe": {4, 8}}[str(options[0])]
        assert {how["bits"] for how in packed.values()} == ({8} if 8 in options else bits)
    answered = run("generate", TALL, "-m", out, "-n", 12)
    assert (answered.code, answered.err) == (0, "")
    assert answered.out.strip()


def test_converting_does_not_touch_the_source_and_repeats_byte_for_byte(run: Run, tmp_path: Path) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    before = content(MODEL)
    for name in ("one", "two"):
        assert run("convert", MODEL, "-o", tmp_path / name, "-q").code == 0
    assert content(MODEL) == before
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_converted_checkpoint_converts_again(run: Run, tmp_path: Path) -> None:
    assert run("convert", MODEL, "-o", tmp_path / "one").code == 0
    assert run("convert", tmp_path / "one", "-o", tmp_path / "two", "-q").code == 0
    assert run("convert", tmp_path / "two", "-o", tmp_path / "three").code == 0  # stays as it is
    answers = [run("generate", TALL, "-m", tmp_path / name, "-n", 12) for name in ("two", "three")]
    assert answers[0] == answers[1]


def test_overwrite_replaces_the_directory_whole(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("convert", MODEL, "-o", out, "-q").code == 0
    (out / "left-over.txt").write_text("old")
    assert run("convert", MODEL, "--mlx-path", out, "--overwrite").code == 0
    assert not (out / "left-over.txt").exists()
    assert json.loads((out / "config.json").read_text())["quantization"] == {}
    assert hidden(tmp_path) == []


def test_folders_on_the_way_are_made(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "not" / "yet" / "there"
    assert run("convert", MODEL, "-o", out).code == 0
    assert (out / "config.json").exists()


@pytest.mark.parametrize("options", [(), ("-q",)], ids=["plain", "-q"])
def test_verify_prints_its_table_and_puts_it_on_the_card(
    run: Run, tmp_path: Path, options: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    done = run("convert", golden("apple-train"), "-o", out, "--verify", *options)
    assert (done.code, done.out) == (0, "")
    rows = dict(re.findall(r"^  (\S.*?)  +(\S.*)$", done.err, re.MULTILINE))
    assert len(rows) == 4
    assert any("KL divergence" in row for row in rows)
    card = (out / "README.md").read_text(encoding="utf-8")
    for what, value in rows.items():
        assert f"| {what} | {value} |" in card
    if not options:
        share = re.search(r"([\d.]+)% of", rows["same most probable token"])
        assert share is not None
        assert float(share[1]) == 100


def test_the_licence_travels_with_a_notice(run: Run, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for path in MODEL.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    (source / "LICENSE").write_text("Apple Machine Learning Research Model License")
    (source / "ACKNOWLEDGEMENTS").write_text("thanks")
    done = run("convert", source, "-o", out)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert (done.code, done.out) == (0, "")
    for name in ("LICENSE", "ACKNOWLEDGEMENTS"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    for text in (done.err, card):
        assert "licensed for research only" in text
        assert "modified" in text
    assert "license: other" in card


def test_without_a_licence_none_is_claimed(run: Run, tmp_path: Path) -> None:
    done = run("convert", MODEL, "-o", tmp_path / "out")
    for text in (done.err, (tmp_path / "out" / "README.md").read_text(encoding="utf-8")):
        assert "licensed for research" not in text
        assert "license:" not in text


# --- doctor ---


def test_doctor_finds_a_good_checkpoint_healthy(run: Run) -> None:
    done = run("doctor", MODEL)
    assert (done.code, done.err) == (0, "")
    assert "apple-llava" in done.out


@pytest.mark.parametrize("options", [(), ("--quick",)], ids=["whole", "quick"])
def test_doctor_reports_as_json(run: Run, options: tuple[str, ...]) -> None:
    done = run("doctor", MODEL, "--json", *options)
    report = json.loads(done.out)
    assert (done.code, done.err, report["healthy"], report["layout"]) == (0, "", True, "apple-llava")
    assert report["findings"]


def test_doctor_finds_what_convert_wrote_healthy(run: Run, tmp_path: Path) -> None:
    assert run("convert", MODEL, "-o", tmp_path / "out", "-q").code == 0
    done = run("doctor", tmp_path / "out", "--json")
    assert (done.code, json.loads(done.out)["healthy"]) == (0, True)


def test_doctor_finds_a_damaged_checkpoint_unhealthy(run: Run, tmp_path: Path) -> None:
    for path in MODEL.iterdir():
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[:-100] if path.suffix == ".safetensors" else content)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    told, listed = run("doctor", tmp_path), run("doctor", tmp_path, "--json")
    assert (told.code, listed.code, told.err, listed.err) == (1, 1, "", "")
    assert "model.safetensors" in told.out
    report = json.loads(listed.out)
    problems = [finding for finding in report["findings"] if finding["level"] == "problem"]
    assert report["healthy"] is False
    assert any("model.safetensors" in finding["what"] for finding in problems)
    assert all(finding["repair"] for finding in problems)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# --- processes of their own ---


def test_the_installed_command_and_the_module_are_one() -> None:
    beside = Path(sys.executable).with_name("fastvlm-mlx")
    if not beside.exists():
        pytest.skip("the console script is not installed beside this interpreter")
    for command in ((str(beside),), COMMAND):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=True)
        assert (done.stdout, done.stderr) == (f"{__version__}\n", "")


def test_ctrl_c_while_answering_leaves_quietly_with_130() -> None:
    script = (
        "import signal\n"
        "from fastvlm_mlx.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs start without it
        "main()"
    )
    arguments = ["generate", str(TALL), "-m", str(MODEL), "-n", "1000000"]
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)  # the answer has begun
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == b""


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("generate", TALL, "-m", MODEL, "-n", 40),
        ("generate", TALL, "-m", MODEL, "-n", 40, "--json"),
    ],
    ids=["help", "text", "json"],
)
def test_a_closed_pipe_is_quiet(arguments: tuple[object, ...]) -> None:
    line = shlex.join([*COMMAND, *map(str, arguments)])
    done = in_shell(f"set -o pipefail; {line} | head -c 1")
    assert len(done.stdout) == 1
    assert done.stderr == ""
    assert done.returncode in (0, 1, 141)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_another_encoding_gets_an_answer(encoding: str) -> None:
    """The golden models say bytes that are no characters, so U+FFFD comes up at once."""
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [*COMMAND, "generate", str(TALL), "-m", str(MODEL), "-n", "12"]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.strip()


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("generate", TALL, "-m", MODEL, "-n", 4), ("generate", "--help")],
    ids=["help", "generate", "help of generate"],
)
def test_a_cold_start_loads_nothing_heavy(arguments: tuple[object, ...]) -> None:
    script = (
        "import sys\n"
        f"sys.argv = ['fastvlm-mlx', *{[*map(str, arguments)]!r}]\n"
        "from fastvlm_mlx.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as left:\n    assert left.code == 0, left.code\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules], sep=',', file=sys.stderr)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != cli.MODEL_VARIABLE}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=True,
    )
    assert done.stderr.strip() == ""


def test_help_does_not_load_mlx() -> None:
    script = (
        "import sys\nsys.argv = ['fastvlm-mlx', '--help']\nfrom fastvlm_mlx.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.exit('mlx.core' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL, timeout=60, check=True)
