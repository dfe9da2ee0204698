"""Ids are the reference's in every layout, and a stream of text is the text."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from fastvlm_mlx.errors import CheckpointError, PromptError
from fastvlm_mlx.inputs.tokenizer import _BYTE_OF, Detokenizer, Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
GOLD = json.loads((GOLDEN / "numbers" / "golden.json").read_text(encoding="utf-8"))
CHECKPOINTS = sorted(path.parent for path in GOLDEN.glob("checkpoints/*/untied/tokenizer_config.json"))
WHOLE = GOLDEN / "checkpoints" / "hf-timm-unfused" / "untied"  # tokenizer.json only, with <image> in it
PARTS = GOLDEN / "checkpoints" / "apple-train" / "untied"  # vocab.json + merges.txt only
TRICKY = [
    "🐕‍🦺🏳️‍🌈👩🏽‍🚀",
    "请回答一下这是什么",
    "e\u0301a\u030au\u0308 नमस्ते",
    "مرحبا",
    "\u0000\x7f\ufffd\U0010ffff",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(WHOLE)


@pytest.fixture(scope="module")
def byte_ids(tokenizer: Tokenizer) -> list[int]:
    """byte -> the id of the token that is this byte alone"""
    ids = {byte: tokenizer.id_of(character) for character, byte in _BYTE_OF.items()}
    return [i for byte in range(256) if (i := ids[byte]) is not None]


def random_text(rng: random.Random) -> str:
    ranges = [(0, 0x80), (0x20, 0x7F), (0x80, 0x800), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (0x300, 0x370)]
    pieces = ["<|im_end|>", "<image>", "<|im_start|>", "  ", "\r\n", "don't", " I'LL", "\u2028", "12"]
    characters = [chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randrange(30))]
    return "".join(rng.choice([*characters, *pieces]) for _ in range(rng.randrange(40)))


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*map(detokenizer.add, ids), detokenizer.finish()]


def parts(directory: Path) -> Path:
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"):
        shutil.copy(PARTS / name, directory)
    return directory


def whole(directory: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(WHOLE / name, directory)
    return directory


def edit(path: Path, change: Any) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


# --- ids


def test_there_are_five_golden_checkpoints() -> None:
    assert len(CHECKPOINTS) == 5


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda path: path.parent.name)
def test_every_layout_gives_the_reference_ids(checkpoint: Path) -> None:
    tokenizer = Tokenizer.load(checkpoint)
    for case in GOLD["tokenizer"]:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
    assert tokenizer.size == 483
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.max_length == 8192
    assert [tokenizer.id_of(name) for name in ("<|endoftext|>", "<|im_end|>", "<image>")] == [480, 482, None]


def test_prompt_pieces_around_pictures_are_tokenized_as_the_reference_does(tokenizer: Tokenizer) -> None:
    for case in GOLD["tokenizer"]:
        ids: list[int] = []
        for index, piece in enumerate(case["text"].split("<image>")):
            ids += ([-200] if index else []) + tokenizer.encode(piece)
        assert ids == case["image_split_ids"]


def test_vocab_and_merges_build_the_same_function_as_tokenizer_json(tokenizer: Tokenizer) -> None:
    other, rng = Tokenizer.load(PARTS), random.Random(0)
    for _ in range(1000):
        text = random_text(rng)
        assert other.encode(text) == tokenizer.encode(text), text


def test_ids_are_those_of_the_tokenizers_library(tokenizer: Tokenizer, tmp_path: Path) -> None:
    edit(whole(tmp_path) / "tokenizer.json", lambda state: state["added_tokens"].pop())  # <image>
    library, rng = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")), random.Random(1)
    for _ in range(1000):
        text = random_text(rng)
        assert tokenizer.encode(text) == library.encode(text).ids, text


def test_nfc_text_survives_the_round_trip(tokenizer: Tokenizer) -> None:
    for text in ("", " ", "naïve café", "请回答", "🐕‍🦺", "a  b\n\n c\t", "<image>", "x<image>y"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_gap_in_the_ids_is_kept_as_the_files_have_it(tmp_path: Path) -> None:
    def add(state: dict[str, Any]) -> None:
        state["added_tokens"].append({"id": 500, "content": "<tool>", "special": False})

    edit(whole(tmp_path) / "tokenizer.json", add)  # <image> at 483 goes, so 483..499 name nothing
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.size == 501
    assert tokenizer.encode("<|im_end|><tool>") == [482, 500]
    assert tokenizer.decode([483, 490, 500]) == "<tool>"
    assert tokenizer.id_of("<image>") is None


def test_truncation_and_padding_of_the_file_never_apply(tmp_path: Path) -> None:
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    edit(whole(tmp_path) / "tokenizer.json", lambda state: state.update(truncation=cut))
    assert len(Tokenizer.load(tmp_path).encode("a b c d")) > 2


def test_merges_may_be_strings_or_pairs(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def join(state: dict[str, Any]) -> None:
        state["model"]["merges"] = [" ".join(merge) for merge in state["model"]["merges"]]

    edit(whole(tmp_path) / "tokenizer.json", join)
    assert Tokenizer.load(tmp_path).encode("the image") == tokenizer.encode("the image")


def test_either_file_of_added_tokens_is_enough(tmp_path: Path) -> None:
    directory, ids = parts(tmp_path), [480, 481, 482]
    edit(directory / "tokenizer_config.json", lambda config: config.pop("added_tokens_decoder"))
    tokenizer = Tokenizer.load(directory)
    assert tokenizer.encode("<|endoftext|><|im_start|><|im_end|>") == ids
    assert tokenizer.decode(ids) == ""  # special by their roles in tokenizer_config.json
    shutil.copy(PARTS / "tokenizer_config.json", directory)
    (directory / "added_tokens.json").unlink()
    assert Tokenizer.load(directory).encode("<|endoftext|><|im_start|><|im_end|>") == ids


@pytest.mark.parametrize(
    ("eos", "limit", "expected"),
    [
        ("<|im_end|>", 8192, ("<|im_end|>", 8192)),
        ({"content": "<|im_end|>", "lstrip": False}, 10**30, ("<|im_end|>", None)),
        (None, 1e30, (None, None)),
        ("<|endoftext|>", None, ("<|endoftext|>", None)),
    ],
)
def test_configuration_is_read_in_every_form(eos: Any, limit: Any, expected: Any, tmp_path: Path) -> None:
    edit(whole(tmp_path) / "tokenizer_config.json", lambda c: c.update(eos_token=eos, model_max_length=limit))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.eos_token, tokenizer.max_length) == expected


def test_configuration_is_optional_beside_tokenizer_json(tmp_path: Path) -> None:
    (whole(tmp_path) / "tokenizer_config.json").unlink()
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.size, tokenizer.eos_token, tokenizer.max_length) == (483, None, None)


# --- text


def test_special_tokens_are_text_only_on_request(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|im_end|>b")
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode(ids, skip_special=False) == "a<|im_end|>b"


def test_added_tokens_that_are_not_special_decode_to_their_content(tmp_path: Path) -> None:
    # Each character of "Ġé" is also the name of a byte: the library would decode bytes.
    entry = {"id": 483, "content": "Ġé ü", "special": False}
    edit(whole(tmp_path) / "tokenizer.json", lambda state: state.update(added_tokens=[entry]))
    assert Tokenizer.load(tmp_path).decode([64, 483]) == "aĠé ü"


def test_stream_of_random_ids_is_their_text(tokenizer: Tokenizer) -> None:
    rng = random.Random(2)
    for _ in range(400):
        ids = [rng.randrange(-3, tokenizer.size + 40) for _ in range(rng.randrange(40))]
        assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_broken_utf8_is_replaced_as_the_tokenizers_library_does(
    tokenizer: Tokenizer, byte_ids: list[int]
) -> None:
    library, rng = tokenizers.Tokenizer.from_file(str(WHOLE / "tokenizer.json")), random.Random(3)
    # The bytes at which the rules of UTF-8 change.
    edges = bytes.fromhex("41 7f 80 8f 90 9f a0 bf c0 c1 c2 df e0 e1 ec ed ee ef f0 f1 f3 f4 f5 ff")
    sequences = [bytes([a, b]) for a in edges for b in edges]
    sequences += [bytes(rng.choices(edges, k=rng.randrange(3, 9))) for _ in range(5000)]
    for sequence in sequences:
        ids = [byte_ids[byte] for byte in sequence]
        assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids) == library.decode(ids), sequence


@pytest.mark.parametrize("text", TRICKY)
def test_characters_are_never_split(text: str, tokenizer: Tokenizer, byte_ids: list[int]) -> None:
    # One byte a token, the worst that a vocabulary can do.
    pieces = stream(tokenizer, [byte_ids[byte] for byte in text.encode()])
    assert [piece for piece in pieces if piece] == list(text)


def test_text_is_given_as_soon_as_it_is_certain(tokenizer: Tokenizer, byte_ids: list[int]) -> None:
    pieces = stream(tokenizer, [byte_ids[byte] for byte in "a🐕".encode() + b"\xf0\x9fb\xe4"])
    assert pieces == ["a", "", "", "", "🐕", "", "", "\ufffdb", "", "\ufffd"]


def test_special_and_unknown_ids_say_nothing_and_break_nothing(
    tokenizer: Tokenizer, byte_ids: list[int]
) -> None:
    first, *rest = (byte_ids[byte] for byte in "请".encode())
    ids = [first, 482, 483, 511, -200, 2**40, *rest]
    assert stream(tokenizer, ids) == ["", "", "", "", "", "", "", "请", ""]
    assert tokenizer.decode(ids) == "请"


def test_a_finished_detokenizer_starts_afresh(tokenizer: Tokenizer, byte_ids: list[int]) -> None:
    detokenizer = Detokenizer(tokenizer)
    detokenizer.add(byte_ids[0xE4])
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.finish() == ""
    assert detokenizer.add(byte_ids[0x61]) == "a"


# --- files


@pytest.mark.parametrize("source", [WHOLE, PARTS], ids=["tokenizer.json", "vocab.json"])
def test_saved_tokenizer_is_the_same_function(source: Path, tmp_path: Path) -> None:
    before = Tokenizer.load(source)
    before.save(tmp_path)
    after, rng = Tokenizer.load(tmp_path), random.Random(4)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    facts = [(t.size, t.eos_token, t.max_length) for t in (before, after)]
    assert facts[0] == facts[1] == (483, "<|im_end|>", 8192)
    for _ in range(300):
        text = random_text(rng)
        ids = before.encode(text)
        assert ids == after.encode(text) == library.encode(text).ids
        assert before.decode(ids) == after.decode(ids) == library.decode(ids)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


def test_gaps_survive_saving(tmp_path: Path) -> None:
    entry = {"id": 490, "content": "<tool>", "special": False}
    edit(whole(tmp_path) / "tokenizer.json", lambda state: state["added_tokens"].append(entry))
    Tokenizer.load(tmp_path).save(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.size, tokenizer.encode("<tool>"), tokenizer.decode([490])) == (491, [490], "<tool>")


def test_saved_configuration_is_minimal(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8")) == {
        "tokenizer_class": "Qwen2Tokenizer",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 8192,
    }


# --- errors


def refuses(directory: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(directory)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(directory))
    for word in (*words, "copy tokenizer.json (or vocab.json, merges.txt"):
        assert word in message


def test_a_directory_without_tokenizer_names_the_files_needed(tmp_path: Path) -> None:
    refuses(tmp_path, "neither tokenizer.json nor both of vocab.json and merges.txt")


def test_vocab_without_merges_is_refused(tmp_path: Path) -> None:
    (parts(tmp_path) / "merges.txt").unlink()
    refuses(tmp_path, "neither tokenizer.json nor both")


def test_vocab_and_merges_without_added_tokens_are_refused(tmp_path: Path) -> None:
    (parts(tmp_path) / "added_tokens.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    refuses(tmp_path, "no added tokens (<|im_end|>)")


@pytest.mark.parametrize(
    "name", ["vocab.json", "added_tokens.json", "tokenizer_config.json", "tokenizer.json"]
)
@pytest.mark.parametrize(
    ("content", "word"),
    [(b'{"a": ', "not valid JSON"), (b"[]", "a JSON list instead"), (b"\xff\xfe", "cannot be read as text")],
)
def test_an_unreadable_file_is_named(name: str, content: bytes, word: str, tmp_path: Path) -> None:
    (parts(tmp_path) / name).write_bytes(content)
    refuses(tmp_path, name, word)


@pytest.mark.parametrize("line", ["a", "a b c", "zz zz", "the  the", " a"])
def test_a_bad_line_of_merges_is_named_with_its_number(line: str, tmp_path: Path) -> None:
    path = parts(tmp_path) / "merges.txt"
    lines = path.read_text(encoding="utf-8").split("\n")
    path.write_text("\n".join([*lines[:6], line, *lines[6:]]), encoding="utf-8")
    refuses(tmp_path, "merges.txt", f"merge 7 is {line!r}")


@pytest.mark.parametrize("merge", [["a"], 7, ["a", 7], ["a", ["b"]], ["zz", "zz"]])
def test_a_bad_merge_of_tokenizer_json_is_named(merge: Any, tmp_path: Path) -> None:
    edit(whole(tmp_path) / "tokenizer.json", lambda state: state["model"]["merges"].insert(0, merge))
    refuses(tmp_path, "tokenizer.json", "merge 1 is")


@pytest.mark.parametrize(
    "entry",
    [
        {"id": 64, "content": "<new>"},  # the id is taken
        {"id": 490, "content": "a"},  # the text has another id
        {"id": 490, "content": "<|im_end|>"},
        {"id": 482, "content": "<new>"},
    ],
)
def test_an_added_token_that_contradicts_the_vocabulary_is_named(entry: Any, tmp_path: Path) -> None:
    edit(whole(tmp_path) / "tokenizer.json", lambda state: state["added_tokens"].append(entry))
    refuses(tmp_path, f"added token {entry['content']!r} with id {entry['id']}, but")


def test_files_of_added_tokens_must_agree(tmp_path: Path) -> None:
    edit(parts(tmp_path) / "added_tokens.json", lambda added: added.update({"<|im_end|>": 490}))
    refuses(tmp_path, "'<|im_end|>' with id 490, but '<|im_end|>' has id 482")


@pytest.mark.parametrize(
    "entry", [{"content": "x"}, {"id": "5", "content": "x"}, {"id": -1, "content": "x"}, 3]
)
def test_an_added_token_without_id_or_text_is_named(entry: Any, tmp_path: Path) -> None:
    edit(whole(tmp_path) / "tokenizer.json", lambda state: state["added_tokens"].append(entry))
    refuses(tmp_path, "without a number for an id or a text")


@pytest.mark.parametrize("key", ["x", "482"])
def test_a_malformed_added_tokens_decoder_is_named(key: str, tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["added_tokens_decoder"] = {key: {"content": "y"} if key == "x" else "y"}

    edit(parts(tmp_path) / "tokenizer_config.json", change)
    refuses(tmp_path, "without a number for an id or a text")


@pytest.mark.parametrize(
    ("token", "i", "word"),
    [
        ("new", 64, "one id to two"),
        ("new", -1, "whole number"),
        ("new", "9", "whole number"),
        ("new", [], "whole"),
    ],
)
def test_a_vocabulary_with_wrong_ids_is_refused(token: str, i: Any, word: str, tmp_path: Path) -> None:
    edit(parts(tmp_path) / "vocab.json", lambda vocab: vocab.update({token: i}))
    refuses(tmp_path, word)


@pytest.mark.parametrize(
    ("section", "change", "place"),
    [
        ("model", {"type": "WordPiece"}, "model.type is 'WordPiece' where Qwen2's tokenizer has 'BPE'"),
        ("model", {"dropout": 0.1}, "model.dropout"),
        ("normalizer", {"type": "NFKC"}, "normalizer.type"),
        ("decoder", {"type": "Metaspace"}, "decoder.type"),
        ("pre_tokenizer", {"type": "Whitespace"}, "pre_tokenizer.type"),
        ("pre_tokenizer", {"pretokenizers": []}, "pre_tokenizer.pretokenizers"),
    ],
)
def test_another_kind_of_tokenizer_is_refused(section: str, change: Any, place: str, tmp_path: Path) -> None:
    edit(whole(tmp_path) / "tokenizer.json", lambda state: state[section].update(change))
    refuses(tmp_path, place)


def test_a_tokenizer_without_vocabulary_is_refused(tmp_path: Path) -> None:
    edit(whole(tmp_path) / "tokenizer.json", lambda state: state["model"].pop("vocab"))
    refuses(tmp_path, "the vocabulary, the merges or added_tokens is missing")


def test_half_a_character_in_a_prompt_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match=r"half a character, '\\ud83d', at position 2"):
        tokenizer.encode("ab\ud83d")
