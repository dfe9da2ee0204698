import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fastvlm_mlx.config import (
    ModelConfig,
    MultiScaleConfig,
    Quantization,
    TextConfig,
    VisionConfig,
    from_json,
    read_json,
)
from fastvlm_mlx.errors import ConfigError

TEXT = TextConfig(64, 2, 4, 2, 192, 512, tied=False)
CONFIG = ModelConfig(
    VisionConfig(), TEXT, eos_token_ids=(1,), quantization={"language.head": Quantization(4, 64)}
)
WHERE = Path("model/config.json")


def scaled(*stages: object, **more: object) -> dict[str, object]:
    return {"stages": list(stages), "pooling": "average"} | more


def body() -> dict[str, Any]:
    return json.loads(CONFIG.to_json())  # type: ignore[no-any-return]


def test_a_configuration_survives_its_file() -> None:
    assert from_json(body(), WHERE) == CONFIG


def test_multi_scale_is_in_the_file_only_where_it_is_on() -> None:
    assert "multi_scale" not in body()["vision"]
    vision = VisionConfig(multi_scale=MultiScaleConfig((2, 4), "depthwise"))
    scaled = dataclasses.replace(CONFIG, vision=vision)
    raw = json.loads(scaled.to_json())
    assert raw["vision"].pop("multi_scale") == {"stages": [2, 4], "pooling": "depthwise"}
    assert raw == body()
    assert from_json(json.loads(scaled.to_json()), WHERE) == scaled


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.text.heads = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("format_version",), 99, "format_version 99"),
        (("text", "heads"), "4", "text.heads"),
        (("text", "heads"), True, "text.heads"),
        (("text", "tied"), 1, "text.tied"),
        (("text", "unheard_of"), 1, "unheard_of"),
        (("vision", "dims"), [1, 2.5], "vision.dims"),
        (("vision",), 7, "vision"),
        (("vision", "multi_scale"), scaled(2, 5), "no stage 5 to add: the earlier ones are 1 to 4; convert"),
        (("vision", "multi_scale"), scaled(0), "no stage 0"),
        (("vision", "multi_scale"), scaled(3, 2, 3), "names stage 3 twice"),
        (("vision", "multi_scale"), scaled(), "names no stage"),
        (("vision", "multi_scale"), scaled("3"), r"vision.multi_scale.stages\[0\] is '3'"),
        (
            ("vision", "multi_scale"),
            scaled(2, pooling="max"),
            "'max', not of the kind 'average' or 'depthwise'",
        ),
        (("vision", "multi_scale"), scaled(2, learned=True), "unknown key vision.multi_scale.'learned'"),
        (("vision", "multi_scale"), {"stages": [2]}, "key vision.multi_scale.'pooling' is missing"),
        (("vision", "multi_scale"), [2, 3], "vision.multi_scale should be an object"),
        (("quantization", "language.head"), {"bits": 7, "group_size": 64}, "7 bits"),
        (("quantization", "language.head"), {"bits": 4, "group_size": 20}, "group size 20"),
        (("quantization", "language.head"), {"bits": 4}, "group_size"),
        (("image", "size"), None, "image.size"),
        (("image", "mode"), "tiles", "image mode 'tiles'; choose one of pad, crop, stretch"),
    ],
)
def test_what_cannot_be_acted_upon_is_named(path: tuple[str, ...], value: object, says: str) -> None:
    raw = body()
    section = raw
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    with pytest.raises(ConfigError, match=says) as caught:
        from_json(raw, WHERE)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named() -> None:
    raw = body()
    del raw["text"]["vocab_size"]
    with pytest.raises(ConfigError, match="vocab_size"):
        from_json(raw, WHERE)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1]", None])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_json(path)
