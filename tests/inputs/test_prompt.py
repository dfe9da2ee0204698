import mlx.core as mx
import pytest

from fastvlm_mlx.errors import PromptError
from fastvlm_mlx.inputs.prompt import Picture, Text, assemble, positions, render

HEAD = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("text", "pictures", "system", "rendered"),
    [
        ("Hi", 0, None, f"{HEAD}Hi{TAIL}"),
        ("Describe.", 1, None, f"{HEAD}<image>\nDescribe.{TAIL}"),
        ("Compare.", 2, None, f"{HEAD}<image>\n<image>\nCompare.{TAIL}"),
        ("Here <image> and <image>?", 2, None, f"{HEAD}Here <image> and <image>?{TAIL}"),
        ("Hi", 0, "Be brief.", f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi{TAIL}"),
        ("Hi", 0, "", f"<|im_start|>user\nHi{TAIL}"),
    ],
)
def test_chat_template(text: str, pictures: int, system: str | None, rendered: str) -> None:
    assert render(text, pictures, system) == rendered


@pytest.mark.parametrize(
    ("text", "pictures", "system", "says"),
    [
        ("", 0, None, "empty"),
        ("  \n", 1, None, "empty"),
        ("<image> and <image>", 1, None, "2 place"),
        ("<image>", 0, None, "0 picture"),
        ("Hi", 1, "look: <image>", "system prompt"),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_refused(
    text: str, pictures: int, system: str | None, says: str
) -> None:
    with pytest.raises(PromptError, match=says):
        render(text, pictures, system)


def test_pictures_stand_where_their_marks_are() -> None:
    first, second = Picture(mx.zeros((1, 64, 128, 3))), Picture(mx.zeros((1, 192, 64, 3)))
    prompt = assemble("<image>ab<image>", [first, second], lambda text: [ord(c) for c in text])
    assert [type(part) for part in prompt] == [Picture, Text, Picture]
    assert prompt[1] == Text((97, 98))
    assert [part.positions for part in prompt] == [2, 2, 3]
    assert positions(prompt) == 7
