"""`make bench`: sections of the page are replaced, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import write

PAGE = "# Page\n\n<!-- one -->\nold\n<!-- end of one -->\nkept\n<!-- two -->\n<!-- end of two -->\n"


def test_a_section_that_is_not_there_yet_goes_to_the_end() -> None:
    new = write.Section("Title", "", "Note.")
    once = write.put(PAGE, "three", new, "first")
    assert once == PAGE + "\n## Title\n\nNote.\n\n<!-- three -->\nfirst\n<!-- end of three -->\n"
    assert write.put(once, "three", new, "second") == once.replace("first", "second")


def test_a_section_is_replaced_with_command_and_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    monkeypatch.setattr(write, "PAGE", page)
    sections = {
        "one": write.Section("", "python -c 'print(6 * 7)'", ""),
        "two": write.Section("", "python -c 'raise SystemExit(1)'", "", needs=("no_such_package",)),
    }
    monkeypatch.setattr(write, "SECTIONS", sections)
    monkeypatch.setattr(sys, "argv", ["write.py"])
    write.main()
    told = page.read_text()
    assert "`python -c 'print(6 * 7)'`" in told
    assert "\n42\n<!-- end of one -->\nkept\n<!-- two -->\n<!-- end of two -->\n" in told
    assert "old" not in told


def test_markdown_that_a_command_writes_is_taken() -> None:
    code = 'import sys; open(sys.argv[1], "w").write("written")'
    assert write.printed(write.Section("", f"python -c '{code}' bench.md", "")) == "written"


def test_an_unknown_section_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["write.py", "three"])
    with pytest.raises(SystemExit):
        write.main()
    assert "choose from time" in capsys.readouterr().err
