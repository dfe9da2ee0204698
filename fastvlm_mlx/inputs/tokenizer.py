"""Text to ids and back: Qwen2's byte-level BPE, from any of the files that checkpoints carry.

tokenizer.json and vocab.json with merges.txt are read into the same tables (vocabulary, merges, added tokens)
and built by the same code, so all layouts give the same ids. `<image>` is never a token here: pictures are
parts of a prompt, and the reference tokenizer reads a literal `<image>` as text. Other tokenizers are not
supported."""

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from ..config import IMAGE_MARK
from ..errors import CheckpointError, PromptError

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The settings of a tokenizer.json that give Qwen2's ids. None means absent, null, false or empty.
_STEPS = [
    {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
]
_UNUSED = ("dropout", "ignore_merges", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
_QWEN2 = {
    "model": {"type": "BPE"} | dict.fromkeys(_UNUSED),
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": _STEPS},
    "decoder": {"type": "ByteLevel"},
}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
_Tables = tuple[dict[str, int], list[tuple[str, str]], list[Any]]  # vocabulary, merges, added tokens

# GPT-2's alphabet: printable bytes stand for themselves, the others for the characters from U+0100 on.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = {chr(b): b for b in _PRINTABLE} | {chr(0x100 + n): b for n, b in enumerate(_OTHERS)}


@dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
    """`size` is the number of ids the model may emit; rows of the embedding beyond it are padding."""

    size: int
    eos_token: str | None
    max_length: int | None
    _backend: tokenizers.Tokenizer = field(repr=False)
    _added: dict[int, AddedToken] = field(repr=False)

    @classmethod
    def load(cls, directory: Path) -> "Tokenizer":
        """From tokenizer.json, else from vocab.json + merges.txt + added tokens."""
        config_file, whole = directory / "tokenizer_config.json", directory / "tokenizer.json"
        config = _read_object(config_file) if config_file.is_file() else {}
        tables = _read_whole(whole) if whole.is_file() else _read_parts(directory, config)
        backend, added, size = _build(*tables, where=whole if whole.is_file() else directory)
        limit: Any = config.get("model_max_length")
        known = isinstance(limit, int | float) and 0 < limit < 1e9  # HF writes 1e30 for "no limit"
        return cls(size, _content(config.get("eos_token")), int(limit) if known else None, backend, added)

    def encode(self, text: str) -> list[int]:
        """Text to ids. Special tokens in the text become their ids; no token is added around it."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = f"half a character, {text[error.start]!r}, at position {error.start}"
            raise PromptError(f"the text has {found}; pass valid Unicode.") from None
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Ids to text. Bytes that are not UTF-8 become U+FFFD; ids outside the vocabulary are skipped."""
        return b"".join(self.bytes_of(i, skip_special) for i in ids).decode(errors="replace")

    def bytes_of(self, token_id: int, skip_special: bool = True) -> bytes:
        """The bytes that one id adds to the text, often only part of a character."""
        if added := self._added.get(token_id):
            return b"" if added.special and skip_special else added.content.encode()
        token = self._backend.id_to_token(token_id) if 0 <= token_id < self.size else None
        try:
            return bytes(_BYTE_OF[character] for character in token or "")
        except KeyError:  # not in the byte alphabet: the vocabulary holds it as plain text
            return (token or "").encode()

    def id_of(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def to_json(self) -> str:
        """The content of a tokenizer.json."""
        return self._backend.to_str()

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, for `load` and for HF's fast tokenizers."""
        # Older transformers clean up spaces unless told not to.
        config = {"tokenizer_class": "Qwen2Tokenizer", "clean_up_tokenization_spaces": False}
        config |= {"eos_token": self.eos_token} if self.eos_token is not None else {}
        config |= {"model_max_length": self.max_length} if self.max_length is not None else {}
        (directory / "tokenizer.json").write_text(self.to_json(), encoding="utf-8")
        (directory / "tokenizer_config.json").write_text(
            json.dumps(config, indent=2) + "\n", encoding="utf-8"
        )


class Detokenizer:
    """Streams text: `"".join(add(id) for id in ids) + finish() == tokenizer.decode(ids)`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_id: int) -> str:
        return self._utf8.decode(self._tokenizer.bytes_of(token_id))

    def finish(self) -> str:
        """U+FFFD if a character is still incomplete. Resets the state for another text."""
        return self._utf8.decode(b"", final=True)


def _read_whole(path: Path) -> _Tables:
    state = _read_object(path)
    for place, found, wanted in _differences(state, _QWEN2):
        raise _bad(path, f"{place} is {str(found)[:80]!r} where Qwen2's tokenizer has {wanted!r}")
    match state:
        case {"model": {"vocab": dict(vocab), "merges": list(lines)}, "added_tokens": list(entries)}:
            vocab.pop(IMAGE_MARK, None)
            return vocab, _merges(lines, vocab, path), entries
    raise _bad(path, "the vocabulary, the merges or added_tokens is missing")


def _read_parts(directory: Path, config: dict[str, Any]) -> _Tables:
    vocab_file, merges_file = directory / "vocab.json", directory / "merges.txt"
    if not (vocab_file.is_file() and merges_file.is_file()):
        raise _bad(directory, "no tokenizer: neither tokenizer.json nor both of vocab.json and merges.txt")
    vocab, lines = _read_object(vocab_file), _read_text(merges_file).split("\n")
    vocab.pop(IMAGE_MARK, None)
    if lines[0].startswith("#version"):  # other lines with "#" are merges
        lines[0] = ""
    entries: list[Any] = []
    decoder, additional = (
        config.get("added_tokens_decoder") or {},
        config.get("additional_special_tokens") or [],
    )
    if not isinstance(decoder, dict) or not isinstance(additional, list):
        raise _bad(directory / "tokenizer_config.json", "its added tokens are not of the kind Qwen2's are")
    for i, entry in decoder.items():
        flagged = isinstance(entry, dict) and i.isdecimal()
        entries.append({**entry, "id": int(i)} if flagged else {i: entry})
    if (added_file := directory / "added_tokens.json").is_file():
        # It has no flags: as in HF, a token is special if the configuration has a role for it.
        named = [*map(config.get, _ROLES), *additional]
        special = {_content(token) for token in named}
        entries += [
            {"id": i, "content": token, "special": token in special}
            for token, i in _read_object(added_file).items()
        ]
    if not entries:
        raise _bad(directory, "no added tokens (<|im_end|>) in added_tokens.json or tokenizer_config.json")
    return vocab, _merges(lines, vocab, merges_file), entries


def _merges(lines: list[Any], vocab: dict[str, int], path: Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(lines, 1):
        if line == "":
            continue
        try:
            left, right = line.split(" ") if isinstance(line, str) else line
            _ = vocab[left], vocab[right], vocab[left + right]
        except (KeyError, TypeError, ValueError):
            found = f"merge {number} is {str(line)[:80]!r}, not two tokens that join to a third"
            raise _bad(path, found) from None
        merges.append((left, right))
    return merges


def _build(
    vocab: dict[str, int], merges: list[tuple[str, str]], entries: list[Any], where: Path
) -> tuple[tokenizers.Tokenizer, dict[int, AddedToken], int]:
    if not all(isinstance(i, int) and 0 <= i < 2**31 for i in vocab.values()):
        raise _bad(where, "the vocabulary has an id that is not a whole number from 0 on")
    names = {i: token for token, i in vocab.items()}
    if len(names) < len(vocab):
        raise _bad(where, "the vocabulary gives one id to two tokens")
    ids, added = dict(vocab), dict[int, AddedToken]()
    for entry in entries:
        match entry:
            case {"content": content} if content == IMAGE_MARK:
                continue
            case {"id": int(i), "content": str(content)} if 0 <= i < 2**31:
                if (i, content) != (ids.setdefault(content, i), names.setdefault(i, content)):
                    other = f"{content!r} has id {ids[content]} and id {i} is {names.get(i)!r} elsewhere"
                    raise _bad(where, f"added token {content!r} with id {i}, but {other}")
                flags = {flag: bool(entry[flag]) for flag in _FLAGS if flag in entry}
                added.setdefault(i, AddedToken(content, **flags))
            case _:
                raise _bad(where, f"added token {str(entry)[:80]!r} without a number for an id or a text")
    # The backend numbers added tokens on from the vocabulary, whatever their files say. Across a gap only
    # an entry in the vocabulary itself keeps an id.
    in_sequence = sorted(added) == list(range(len(vocab), len(vocab) + len(added)))
    backend = tokenizers.Tokenizer(models.BPE(vocab if in_sequence else ids, merges))
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([added[i] for i in sorted(added)])
    return backend, added, max(names, default=-1) + 1


def _differences(found: Any, wanted: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The places where `found` differs from `wanted`; extra keys in `found` are ignored."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, value in wanted.items():
            yield from _differences(found.get(key), value, f"{place}.{key}".lstrip("."))
    elif isinstance(wanted, list) and isinstance(found, list) and len(found) == len(wanted):
        for index, value in enumerate(wanted):
            yield from _differences(found[index], value, f"{place}.{index}")
    elif found if wanted is None else found != wanted:
        yield place, found, wanted


def _content(token: Any) -> str | None:
    """`"<|im_end|>"` and `{"content": "<|im_end|>", ...}` -> `"<|im_end|>"`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(path, f"cannot be read as text ({error})") from None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise _bad(path, f"not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise _bad(path, f"a JSON {type(value).__name__} instead of an object")
    return value


def _bad(where: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: {found}; copy tokenizer.json (or vocab.json, merges.txt, added_tokens.json) and "
        "tokenizer_config.json again from the model's page on Hugging Face."
    )
