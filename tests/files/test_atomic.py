import os
from pathlib import Path

import pytest

from fastvlm_mlx.errors import CheckpointError, DataError
from fastvlm_mlx.files.atomic import new_directory, write_file


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    destination = tmp_path / "deep" / "out"
    with new_directory(destination) as folder:
        (folder / "a").write_text("1")
        assert not destination.exists()
    assert (destination / "a").read_text() == "1"
    assert os.listdir(destination.parent) == ["out"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("bug")]
)
def test_after_a_failure_nothing_is_there(tmp_path: Path, error: BaseException) -> None:
    wanted = CheckpointError if isinstance(error, OSError) else type(error)

    def fill() -> None:
        with new_directory(tmp_path / "out") as folder:
            (folder / "a").write_text("1")
            raise error

    with pytest.raises(wanted):
        fill()
    assert os.listdir(tmp_path) == []


def test_an_existing_destination_is_refused_or_replaced_whole(tmp_path: Path) -> None:
    destination = tmp_path / "out"
    destination.mkdir()
    (destination / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="--overwrite"), new_directory(destination):
        pass
    with new_directory(destination, overwrite=True) as folder:
        (folder / "new").write_text("1")
    assert os.listdir(destination) == ["new"]
    assert os.listdir(tmp_path) == ["out"]


def test_what_a_killed_run_left_is_swept_and_a_living_one_is_spared(tmp_path: Path) -> None:
    dead, living = tmp_path / ".out.999999999.partial", tmp_path / f".out.{os.getppid()}.partial"
    dead.mkdir()
    living.mkdir()
    with new_directory(tmp_path / "out"):
        pass
    assert sorted(os.listdir(tmp_path)) == [living.name, "out"]


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="free"), new_directory(tmp_path / "out", needs_bytes=2**60):
        raise AssertionError("not reached")
    assert os.listdir(tmp_path) == []


def test_what_is_no_model_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="no model"), new_directory(tmp_path, overwrite=True):
        pass
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_file_in_the_way_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file"), new_directory(tmp_path / "out", overwrite=True):
        pass
    assert (tmp_path / "out").read_text() == "mine"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    write_file(tmp_path / "a", "one")
    write_file(tmp_path / "a", "two")
    assert (tmp_path / "a").read_text() == "two"
    with pytest.raises(UnicodeEncodeError):
        write_file(tmp_path / "a", "half a character \udcff")
    assert (tmp_path / "a").read_text() == "two"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("name", "says"), [("", "no ordinary file"), ("gone/a", "no folder .*gone"), ("a/b", "no folder .*a;")]
)
def test_where_no_file_can_be_written_is_said(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(DataError, match=says):
        write_file(tmp_path / name, "text")
    with pytest.raises(DataError, match="no ordinary file"):
        write_file(Path(os.devnull), "text")
