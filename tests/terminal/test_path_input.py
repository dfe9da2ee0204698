"""Paths as terminals and people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastvlm_mlx.terminal.path_input import split_paths


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("cat.jpg", "My Cat.PNG", "clip.MOV", "it's.webp", "a b.txt", "what"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("line", "names", "rest"),
    [
        ("cat.jpg", ["cat.jpg"], ""),
        ("  cat.jpg  ", ["cat.jpg"], ""),
        ("clip.MOV when is it?", ["clip.MOV"], "when is it?"),
        ("cat.jpg what is it?", ["cat.jpg"], "what is it?"),
        ("cat.jpg what's it?", ["cat.jpg"], "what's it?"),
        (r"My\ Cat.PNG what's   that?", ["My Cat.PNG"], "what's   that?"),
        ("'My Cat.PNG' hm?", ["My Cat.PNG"], "hm?"),
        ('"My Cat.PNG" hm?', ["My Cat.PNG"], "hm?"),
        ("My Cat.PNG", ["My Cat.PNG"], ""),
        ("My Cat.PNG and so on", ["My Cat.PNG"], "and so on"),
        (r"it\'s.webp", ["it's.webp"], ""),
        (r"'it'\''s.webp'", ["it's.webp"], ""),
        ("it's.webp", ["it's.webp"], ""),
        ("./a b.txt", ["a b.txt"], ""),
        ("~/cat.jpg", ["cat.jpg"], ""),
        (r"cat.jpg My\ Cat.PNG 'it'\''s.webp' which?", ["cat.jpg", "My Cat.PNG", "it's.webp"], "which?"),
        ("file://HERE/My%20Cat.PNG hm?", ["My Cat.PNG"], "hm?"),
        ("HERE/My Cat.PNG hm?", ["My Cat.PNG"], "hm?"),
        # no paths
        ("", [], ""),
        ("what is it?", [], "what is it?"),  # there is a file of that name, but it looks like no picture
        ("What's in cat.jpg?", [], "What's in cat.jpg?"),
        ("gone.jpg?", [], "gone.jpg?"),
        ("folder.png", [], "folder.png"),
        ("~nobody/cat.jpg", [], "~nobody/cat.jpg"),
        ("# cat", [], "# cat"),
        ("/" + "x" * 5000, [], "/" + "x" * 5000),
        ("a/\0b.png", [], "a/\0b.png"),
    ],
)
def test_a_line(files: Path, line: str, names: list[str], rest: str) -> None:
    found, left = split_paths(line.replace("HERE", str(files)))
    assert [path.name for path in found] == names
    assert left == rest
