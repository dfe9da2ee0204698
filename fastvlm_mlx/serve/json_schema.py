"""Answers that are JSON, of any shape or of a schema's: which tokens may come next. By llguidance.

shapes = Shapes(tokenizer)      once for a model
shape = shapes.begin(form)      once for an answer
shape.allowed()                 (vocabulary,) of bool; then
shape.said(id)                  what was chosen; the end, `<|im_end|>`, is a choice like others
shape.done                      nothing but the end may follow
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError, ConfigError
from ..inputs.tokenizer import Tokenizer
from .request import Form, Refused

END = "<|im_end|>"
# Between the parts of JSON: enough to indent, and not so much that a weak model goes on for ever.
_SPACES = r"[\x20\x0A\x0D\x09]{1,32}"
_OPTIONS = {"whitespace_pattern": _SPACES, "json_allow_general_unicode_escapes": True}
_ANY_OBJECT = '{"type": "object"}'


class Shapes:
    """What all answers of a model share. Building it takes seconds with a vocabulary like Qwen2's."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._library = _library()
        end = tokenizer.id_of(END)
        if end is None:
            raise CheckpointError(f"the tokenizer has no {END}; copy its files again from the model's page")
        self._tokens = self._library.LLTokenizer(_of_text(tokenizer), n_vocab=tokenizer.size, eos_token=end)

    def begin(self, form: Form) -> Shape:
        """An answer of this form; refused if the schema asks for what cannot be promised."""
        matcher = self._library.LLMatcher
        schema = json.loads(form.schema or _ANY_OBJECT)
        schema.pop("x-guidance", None)  # the library's own settings, one of which is to ignore the schema
        try:
            grammar = matcher.grammar_from_json_schema(schema, overrides=_OPTIONS)
        except ValueError as error:
            raise _refused(str(error)) from None
        limits = self._library.LLParserLimits(verbose_errors=False)
        return Shape(matcher(self._tokens, grammar, log_level=0, limits=limits), self._tokens.vocab_size)


class Shape:
    """One answer as far as it has come."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._check()
        self.allowed()  # some schemas turn out only here to be such that nothing meets them

    @property
    def done(self) -> bool:
        stopped: bool = self._matcher.is_stopped()
        return stopped

    def allowed(self) -> npt.NDArray[np.bool_]:
        """(vocabulary,): which ids may come next"""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, count=self._vocabulary, bitorder="little").view(np.bool_)

    def said(self, token_id: int) -> None:
        """An id that was allowed."""
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refused(self._matcher.get_error())


def _of_text(tokenizer: Tokenizer) -> str:
    """A tokenizer.json in which any text becomes tokens that are that very text.

    Normalized, a decomposed é would become a token of another text, and `<|im_end|>` in a schema's string the
    end: the library would offer either and then not take it. So nothing is normalized, and added tokens go by
    names that nobody writes, as do ids that stand for nothing, which it must have as well.
    """
    state = json.loads(tokenizer.to_json())
    state["normalizer"] = None
    vocabulary = state["model"]["vocab"]
    for token in state["added_tokens"]:
        vocabulary.pop(token["content"], None)
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    unsaid = sorted(set(range(tokenizer.size)) - set(vocabulary.values()))
    names = {token_id: f"\ue000{token_id}\ue000" for token_id in unsaid}
    vocabulary |= {name: token_id for token_id, name in names.items()}
    state["added_tokens"] = [
        {"id": token_id, "content": name, "special": True} | plain for token_id, name in names.items()
    ]
    return json.dumps(state)


def _refused(reason: str) -> Refused:
    said = " ".join(reason.split())[:200]
    found = f"response_format cannot be kept to ({said}); ask for a simpler schema"
    return Refused(found, param="response_format", code="invalid_json_schema")


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ConfigError(
            "answers of a given form need llguidance; run pip install 'fastvlm-mlx[serve]'"
        ) from None
    return llguidance
