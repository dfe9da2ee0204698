"""Files and requests with random damage: they work, or one of our errors says what is wrong. Never a
traceback."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import golden
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastvlm_mlx.errors import FastVLMError
from fastvlm_mlx.inputs.tokenizer import Tokenizer
from fastvlm_mlx.serve import request
from fastvlm_mlx.weights import checkpoint, hub, tensorfile

FEW, MANY = 75, 750  # cases of each of four tests

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**40, 2**63, 2**64, -(2**63), 10**30, 1e308, 0.5, float("inf"), float("nan")]),
    st.text(max_size=6),
    st.sampled_from(["", "\x00", "\ud800", "é" * 200, "float16", "llava_qwen2", "<image>"]),
    st.lists(st.integers(-1, 2**40), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
SETTINGS = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
}


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, inner in items for place in places(inner, (*at, key)))]


def changed(document: Any, place: tuple[Any, ...], new: Any, *, gone: bool) -> Any:
    if not place:
        return new
    document = copy.deepcopy(document)
    holder = document
    for key in place[:-1]:
        holder = holder[key]
    if gone and isinstance(holder, dict):
        del holder[place[-1]]
    else:
        holder[place[-1]] = new
    return document


def damaged(document: Any) -> st.SearchStrategy[Any]:
    """The document with one to three values replaced or removed."""

    def one(document: Any) -> st.SearchStrategy[Any]:
        return st.builds(
            lambda place, new, gone: changed(document, place, new, gone=gone),
            st.sampled_from(places(document)),
            ODD,
            st.booleans(),
        )

    return one(document) | one(document).flatmap(one)


def only_our_errors(run: Callable[[], object]) -> None:
    said = "one line"
    try:
        run()
    except FastVLMError as error:
        said = str(error)
    assert len(said.splitlines()) == 1, said


def fuzzed(test: Callable[..., None]) -> Any:
    """Few cases in the fast tier, ten times as many in the slow one."""
    return pytest.mark.parametrize("cases", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])(test)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    at = tmp_path_factory.mktemp("fuzz")
    sources = (golden("apple-fused"), golden("hf-timm-unfused"), hub.BUILT_IN["tiny"])
    return [Path(shutil.copytree(source, at / str(number))) for number, source in enumerate(sources)]


def dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True)


@fuzzed
def test_configurations(cases: int, folders: list[Path]) -> None:
    """Headers are read and names and shapes checked; no tensor is."""
    whole = {folder: json.loads((folder / "config.json").read_text()) for folder in folders}

    @settings(max_examples=cases, **SETTINGS)
    @given(st.sampled_from(folders).flatmap(lambda at: st.tuples(st.just(at), damaged(whole[at]))))
    def fuzz(case: tuple[Path, Any]) -> None:
        folder, config = case
        (folder / "config.json").write_text(dumped(config))
        only_our_errors(lambda: checkpoint.read(folder))

    fuzz()


@fuzzed
def test_tokenizers(cases: int, folders: list[Path]) -> None:
    files = [at / name for at in folders for name in ("tokenizer.json", "tokenizer_config.json")]
    whole = {file: json.loads(file.read_text()) for file in files if file.exists()}

    def small(value: Any) -> Any:
        """Without the long tables, whose every entry would be a place as likely as all the settings."""
        if isinstance(value, dict):
            return {key: small(inner) for key, inner in list(value.items())[:40]}
        return [small(inner) for inner in value[:10]] if isinstance(value, list) else value

    @settings(max_examples=cases, **SETTINGS)
    @given(
        st.sampled_from(list(whole)).flatmap(
            lambda file: st.tuples(st.just(file), damaged(small(whole[file])))
        )
    )
    def fuzz(case: tuple[Path, Any]) -> None:
        file, content = case
        file.write_text(dumped(content))
        only_our_errors(lambda: Tokenizer.load(file.parent).encode("What is this?"))
        file.write_text(dumped(whole[file]))

    fuzz()


@fuzzed
def test_safetensors(cases: int, tmp_path: Path) -> None:
    source = (golden("apple-fused") / "model.safetensors").read_bytes()[: 2**20]
    length = int.from_bytes(source[:8], "little")
    header = json.loads(source[8 : 8 + length])
    some = {name: header[name] for name in list(header)[:6]}
    file = tmp_path / "model.safetensors"

    def written(header: Any, claimed: int | None, cut: int) -> bytes:
        content = dumped(header).encode()
        size = len(content) if claimed is None else claimed
        return (size.to_bytes(8, "little") + content + bytes(4096))[: cut or None]

    @settings(max_examples=cases, **SETTINGS)
    @given(
        damaged(some),
        st.sampled_from([None, None, None, 0, 1, 2**20, 2**63]),
        st.sampled_from([0, 0, 5, 9, 40]),
    )
    def fuzz(header: Any, claimed: int | None, cut: int) -> None:
        file.write_bytes(written(header, claimed, cut))
        only_our_errors(lambda: tensorfile.lazy_arrays(file))

    fuzz()


@fuzzed
def test_requests(cases: int) -> None:
    whole = {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                    {"type": "text", "text": "What is it?"},
                ],
            },
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "max_tokens": 5,
        "stop": ["x"],
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"type": "object"}},
        },
        "image_size": 256,
        "seed": 3,
    }

    @settings(max_examples=cases, **SETTINGS)
    @given(damaged(whole) | st.binary(max_size=30))
    def fuzz(case: Any) -> None:
        body = case if isinstance(case, bytes) else dumped(case).encode()

        def run() -> None:
            request.chatml(request.parse(body).messages)

        only_our_errors(run)

    fuzz()
