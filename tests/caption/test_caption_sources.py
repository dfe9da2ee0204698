"""What there is to caption: every kind of source, in a stable order, under keys that are unique and stay."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from albums import album, drawn, shard

from fastvlm_mlx import DataError, ImageError
from fastvlm_mlx.caption.items import Item, Wrong, fields, opened
from fastvlm_mlx.caption.sources import Found, find
from fastvlm_mlx.caption.tables import Reading
from fastvlm_mlx.inputs.image import preprocess


def found(*sources: object, column: str | None = None, folder: Path | None = None, wanted: str = "") -> Found:
    return find([str(source) for source in sources], Reading(folder, column, frozenset(wanted.split())))


def keys(items: Sequence[Item]) -> list[str]:
    return [item.key for item in items]


def pixels(item: Item) -> bytes:
    return preprocess(opened(item), 64).tobytes()


def assert_drawn(items: Sequence[Item], *seeds: int) -> None:
    assert [pixels(item) for item in items] == [preprocess(drawn(seed), 64).tobytes() for seed in seeds]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- files ---


def test_a_folder_is_every_picture_below_it(here: Path) -> None:
    album(here / "photos" / "b" / "deep", 1)
    album(here / "photos" / "a", 2)
    (here / "photos" / "Z.PNG").write_bytes(drawn(7))
    (here / "photos" / "notes.txt").write_text("mine")
    (here / "photos" / ".hidden").mkdir()
    (here / "photos" / ".hidden" / "c.png").write_bytes(drawn(1))
    (here / "photos" / "._Z.png").write_bytes(b"a shadow that macOS leaves")
    photos = found("photos")
    assert keys(photos.items) == ["Z.PNG", "a/0000.png", "a/0001.png", "b/deep/0000.png"]
    assert_drawn(photos.items, 7, 0, 1, 0)
    assert photos.left_out == 1
    assert keys(found(here / "photos" / "").items) == keys(photos.items)  # wherever it is seen from
    assert fields(photos.items[1]) == {"name": "0000", "folder": "a", "key": "a/0000.png"}


def test_a_pattern_is_what_it_matches(here: Path) -> None:
    album(here / "photos" / "a", 2)
    album(here / "photos", 1)
    (here / "photos" / "notes.txt").write_text("mine")
    assert keys(found("photos/*").items) == ["photos/0000.png"]
    assert keys(found("photos/**/*1.png").items) == ["photos/a/0001.png"]
    assert len(found("photos/**").items) == 3


def test_brackets_in_a_name_are_no_pattern(here: Path) -> None:
    (here / "a[1].png").write_bytes(drawn(3))
    assert_drawn(found("a[1].png").items, 3)


def test_what_is_named_is_taken_whatever_its_suffix_is(here: Path) -> None:
    (here / "picture").write_bytes(drawn(3))
    assert_drawn(found("picture").items, 3)


def test_a_file_that_comes_twice_is_captioned_once(here: Path) -> None:
    album(here / "photos", 3)
    items = found("photos/0001.png", "photos", "./photos/*.png").items
    assert keys(items) == ["photos/0001.png", "photos/0000.png", "photos/0002.png"]


def test_the_same_name_in_two_folders_is_two_pictures(here: Path) -> None:
    album(here / "a", 1)
    (here / "b").mkdir()
    (here / "b" / "0000.png").write_bytes(drawn(5))
    items = found("a", "b").items
    assert keys(items) == ["a/0000.png", "b/0000.png"]
    assert_drawn(items, 0, 5)


def test_names_may_hold_anything(here: Path) -> None:
    names = ["é.png", "日本 語.png", "two\nlines.png", 'quo"te.png', "#%s{x}.png", "e\u0301.png"]
    (here / "odd").mkdir()
    for seed, name in enumerate(sorted(names)):
        (here / "odd" / name).write_bytes(drawn(seed))
    items = found("odd").items
    assert keys(items) == sorted(names)
    assert_drawn(items, *range(len(names)))


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="file names are text elsewhere")
def test_names_that_are_no_text_have_keys_of_their_own(here: Path) -> None:
    (here / "odd").mkdir()
    for name in (b"a\xff.png", b"a\xfe.png", b"a\\xff.png"):
        with open(os.path.join(b"odd", name), "wb") as file:
            file.write(drawn(len(name)))
    items = found("odd").items
    assert sorted(keys(items)) == ["a\\xfe.png", "a\\xff.png", "a\\xff.png#2"] or len(set(keys(items))) == 3
    assert json.loads(json.dumps(keys(items))) == keys(items)
    assert sorted(map(pixels, items)) == sorted(map(pixels, found("odd/*").items))


def test_a_limit_takes_the_first(here: Path) -> None:
    album(here / "photos", 5)
    assert keys(find(["photos"], Reading(None, None, frozenset()), 2).items) == ["0000.png", "0001.png"]


# --- tars ---


def test_a_tar_s_pictures_are_its_members(here: Path) -> None:
    shard(
        here / "000.tar",
        {
            "a/1.png": drawn(1),
            "a/1.txt": b" a cat\n",
            "a/1.json": b'{"title": "Tom", "txt2": 3}',
            "a/._1.png": b"x",
            "a/2.left.png": drawn(2),
            "a/2.cls": b"7",
            "a/2.json": b"[1]",
        },
    )
    items = found("000.tar").items
    assert keys(items) == ["000.tar/a/1.png", "000.tar/a/2.left.png"]
    assert_drawn(items, 1, 2)
    assert fields(items[0]).items() >= {"name": "1", "txt": "a cat", "title": "Tom", "folder": "a"}.items()
    assert fields(items[1])["cls"] == "7"


def test_members_of_one_name_are_told_apart(here: Path) -> None:
    shard(here / "000.tar", [("1.png", drawn(1)), ("1.png", drawn(2))])
    items = found("000.tar").items
    assert keys(items) == ["000.tar/1.png", "000.tar/1.png#2"]
    assert_drawn(items, 1, 2)


@pytest.mark.parametrize(
    ("kept", "rest", "good", "listed"),
    [(600, b"", 0, 1), (1024, b"", 1, 1), (1300, b"", 1, 1), (1700, b"", 1, 2), (1024, b"x" * 2000, 1, 1)],
    ids=["in a picture", "between two", "in a header", "in the second", "with something else after"],
)
def test_a_torn_tar_gives_what_is_before_the_tear(
    here: Path, kept: int, rest: bytes, good: int, listed: int
) -> None:
    whole = shard(here / "whole.tar", {f"{seed}.png": drawn(seed) for seed in range(3)}).read_bytes()
    (here / "torn.tar").write_bytes(whole[:kept] + rest)
    items = found("torn.tar", "whole.tar").items
    names = [f"torn.tar/{seed}.png" for seed in range(listed)]
    assert keys(items) == [*names, "torn.tar", *(f"whole.tar/{seed}.png" for seed in range(3))]
    assert_drawn(items[:good], *range(good))
    assert_drawn(items[-3:], 0, 1, 2)
    for item in items[good:-3]:
        with pytest.raises(ImageError, match="cut short"):
            opened(item)


def test_a_file_that_only_sounds_like_a_tar_fails_with_the_reason(here: Path) -> None:
    (here / "no.tar").write_bytes(b"precious" * 200)
    (item,) = found("no.tar").items
    with pytest.raises(ImageError, match="damaged or cut short"):
        opened(item)


# --- tables ---


def test_a_csv_has_a_picture_a_row(here: Path) -> None:
    album(here / "photos", 2)
    (here / "list.csv").write_text(
        '\ufefftitle,image,price\n"a ""b""\nc",photos/0000.png,3\n,photos/0001,\n', encoding="utf-8"
    )
    items = found("list.csv", wanted="title price").items
    assert keys(items) == ["list.csv#1:photos/0000.png", "list.csv#2:photos/0001"]
    assert_drawn(items, 0, 1)  # the second without its suffix
    assert fields(items[0]) == {
        "name": "0000",
        "folder": "photos",
        "key": "list.csv#1:photos/0000.png",
        "title": 'a "b"\nc',
        "price": "3",
    }


def test_paths_start_from_the_folder_that_is_named(here: Path) -> None:
    album(here / "photos", 1)
    (here / "lists").mkdir()
    (here / "lists" / "list.tsv").write_text("n\twhere\n1\t0000.png\n")
    items = found("lists/list.tsv", column="where", folder=here / "photos").items
    assert keys(items) == ["lists/list.tsv#1:0000.png"]
    assert_drawn(items, 0)


def test_a_picture_in_two_rows_is_two_items(here: Path) -> None:
    album(here, 1)
    (here / "list.csv").write_text("file_name\n0000.png\n0000.png\n")
    assert keys(found("list.csv").items) == ["list.csv#1:0000.png", "list.csv#2:0000.png"]


def test_lines_of_json_that_are_wrong_are_items_with_a_reason(here: Path) -> None:
    album(here, 1)
    good = {"image": ["0000.png"], "title": "t"}
    rows: list[Any] = [good, "", "{", [1], {"image": 3}, {"image": ["a", "b"]}, {"x": 1}, {"image": "a\0b"}]
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    (here / "list.jsonl").write_text(text)
    first, *others = found("list.jsonl", wanted="title").items
    assert_drawn([first], 0)
    assert (first.key, first.columns) == ("list.jsonl#1:0000.png", {"title": "t"})
    assert keys(others) == [f"list.jsonl#{line}" for line in (3, 4, 5, 6, 7, 8)]
    assert all(isinstance(item.place, Wrong) for item in others)
    with pytest.raises(ImageError, match=r"no field .*image.*, only 'x'"):
        opened(others[4])


@pytest.mark.parametrize("kind", ["paths", "bytes", "pairs"])
def test_parquet_has_paths_or_pictures(here: Path, kind: str) -> None:
    album(here, 5)
    names = [f"{number:04}.png" for number in range(5)]
    data = [drawn(number) for number in range(5)]
    column: Any = {
        "paths": names,
        "bytes": data,
        "pairs": [
            {"bytes": None if number == 2 else data[number], "path": None if number == 1 else names[number]}
            for number in range(5)
        ],
    }[kind]
    table = pyarrow.table({"image": column, "title": list("abcde")})
    pyarrow.parquet.write_table(table, "list.parquet", row_group_size=2)
    items = found("list.parquet", wanted="title").items
    assert_drawn(items, *range(5))
    assert [item.columns["title"] for item in items] == list("abcde")
    shown = {"paths": names, "bytes": [""] * 5, "pairs": [names[0], "", *names[2:]]}[kind]
    assert keys(items) == [
        f"list.parquet#{row}{f':{name}' if name else ''}" for row, name in enumerate(shown, 1)
    ]
    together = {item.together for item in items}
    assert len(together) == (5 if kind == "paths" else 3)  # a row group is read at once


def test_a_template_s_columns_alone_are_read(here: Path) -> None:
    album(here, 1)
    pyarrow.parquet.write_table(pyarrow.table({"image": ["0000.png"], "long": ["x" * 1000]}), "list.parquet")
    assert found("list.parquet").items[0].columns == {}


# --- nothing there ---


def test_nothing_to_caption_is_said(here: Path) -> None:
    (here / "empty").mkdir()
    (here / "packed").mkdir()
    shard(here / "packed" / "0.tar", {"a.png": drawn(0)})
    (here / "texts").mkdir()
    (here / "texts" / "a.txt").write_text("mine")
    for source, message in {
        "gone": "gone: no such file or folder",
        "gone/*.png": r"gone/\*.png: no pictures; check",
        "empty": "empty: no pictures; check",
        "packed": r"no pictures, but \.tar files; to read them, give 'packed/\*\.tar'",
        "texts": r"only other files \(1 \.txt\)",
    }.items():
        with pytest.raises(DataError, match=message):
            found(source)
