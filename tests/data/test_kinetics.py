"""Kinetics' official csv with both layouts of the videos."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from octvideo.class_names import ClassIndex
from octvideo.data.kinetics import is_kinetics_csv, read_kinetics_csv
from octvideo.errors import UserError

CLASSES = ClassIndex(["abseiling", "jump rope", "zumba"])
HEADER = "label,youtube_id,time_start,time_end,split\n"
ROWS = [
    ("jump rope", "-abcdefghij", 7, 17),
    ("abseiling", "_bcdefghijk", 0, 10),
    ("zumba", "cdefghijklm", 123, 133),
]
TABLE = HEADER + "".join(f"{label},{name},{start},{end},validate\n" for label, name, start, end in ROWS)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def read(root: Path, text: str = TABLE, *, labelled: bool = True) -> list[tuple[str, int]]:
    file = root / "val.csv"
    file.write_text(text, encoding="utf-8")
    assert is_kinetics_csv(file)
    found = read_kinetics_csv(file, root=root, classes=CLASSES, labelled=labelled)
    return [(str(Path(record.path).relative_to(root)), record.label) for record in found]


@pytest.mark.parametrize("folder", ["", "val/", "validate/", "videos/"])
def test_the_archives_of_cvdf(tmp_path: Path, folder: str) -> None:
    names = [f"{folder}{name}_{start:06d}_{end:06d}.mp4" for _, name, start, end in ROWS]
    touch(tmp_path, *names)
    assert read(tmp_path) == list(zip(names, (1, 0, 2), strict=True))


@pytest.mark.parametrize("folder", ["", "val/"])
def test_class_folders_of_ids(tmp_path: Path, folder: str) -> None:
    names = [f"{folder}{label.replace(' ', '_')}/{name}.mkv" for label, name, _, _ in ROWS]
    touch(tmp_path, *names)
    assert read(tmp_path) == list(zip(names, (1, 0, 2), strict=True))


def test_class_folders_of_full_names(tmp_path: Path) -> None:
    names = [f"val/{label}/{name}_{start:06d}_{end:06d}.mp4" for label, name, start, end in ROWS]
    touch(tmp_path, *names)
    assert read(tmp_path) == list(zip(names, (1, 0, 2), strict=True))


def test_missing_videos_are_counted_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "val/_bcdefghijk_000000_000010.mp4")
    with caplog.at_level(logging.WARNING, "octvideo.data"):
        assert read(tmp_path) == [("val/_bcdefghijk_000000_000010.mp4", 0)]
    (said,) = [record.getMessage() for record in caplog.records]
    file = tmp_path / "val.csv"
    assert said == f"{file} lists 3 videos, 2 of them are not there (the first: -abcdefghij_000007_000017)"


def test_none_is_there(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert str(error.value) == (
        f"none of the 3 videos of {tmp_path}/val.csv is under {tmp_path}: looked for files such as "
        f"-abcdefghij_000007_000017.mp4 in {tmp_path}, {tmp_path}/val and class folders in them. "
        "data/README.md tells how to get them"
    )


def test_the_test_list_has_no_labels(tmp_path: Path) -> None:
    touch(tmp_path, "a0123456789_000001_000011.mp4")
    text = "youtube_id,time_start,time_end,split\na0123456789,1,11,test\n"
    assert read(tmp_path, text, labelled=False) == [("a0123456789_000001_000011.mp4", -1)]
    with pytest.raises(UserError, match=r"val\.csv:2: no label; a csv without labels is for prediction"):
        read(tmp_path, text)


def test_other_spellings_of_the_table(tmp_path: Path) -> None:
    touch(tmp_path, "a0123456789_000001_000011.mp4")
    quoted = (
        '\ufeff"label","youtube_id","time_start","time_end","split","is_cc"\n"zumba",a0123456789,1.0,11.0,train,0\n'
    )
    assert read(tmp_path, quoted) == [("a0123456789_000001_000011.mp4", 2)]
    assert read(tmp_path, "label,time_start,time_end,youtube_id\nzumba,1,11,a0123456789\n")[0][1] == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("abseilling,a0123456789,1,11,train", r"'abseilling' is no known class, did you mean 'abseiling'\?"),
        (
            "zumba,a0123456789,soon,11,train",
            "got 'zumba,a0123456789,soon,11,train', expected label,youtube_id,time_start",
        ),
        (
            "zumba,a0123456789",
            "got 'zumba,a0123456789', expected label,youtube_id,time_start,time_end,split or class/{id}_",
        ),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"val\.csv:4: {message}".replace("{id}", r"\{id\}")):
        read(tmp_path, f"{HEADER}zumba,b0123456789,1,11,train\n\n{row}\n")


def test_the_first_line_may_be_missing(tmp_path: Path) -> None:
    touch(tmp_path, "a0123456789_000001_000011.mp4", "-b123456789_000007_000017.mp4")
    text = "jump rope,a0123456789,1,11,train\nzumba,-b123456789,7,17,train\n"
    assert read(tmp_path, text) == [("a0123456789_000001_000011.mp4", 1), ("-b123456789_000007_000017.mp4", 2)]


def test_other_lists_are_told_apart(tmp_path: Path) -> None:
    for text in ("a.mp4 0\n", "", "path,label\na.mp4,0\n", '"'):
        (tmp_path / "list.csv").write_text(text)
        assert not is_kinetics_csv(tmp_path / "list.csv")


@pytest.mark.parametrize(
    "folder", ["replacement/replacement_for_corrupted_k400", "replacement_for_corrupted_k400", "replacement"]
)
def test_good_copies_of_broken_videos_are_read(tmp_path: Path, folder: str, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"val/{name}_{start:06d}_{end:06d}.mp4" for _, name, start, end in ROWS]
    touch(tmp_path, *names, f"{folder}/_bcdefghijk_000000_000010.mp4", f"{folder}/zzzzzzzzzzz_000000_000010.mp4")
    with caplog.at_level(logging.INFO, "octvideo.data"):
        assert read(tmp_path) == [(names[0], 1), (f"{folder}/_bcdefghijk_000000_000010.mp4", 0), (names[2], 2)]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/val.csv: 1 videos are taken from {tmp_path}/{folder}"
    ]


def test_a_csv_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_bytes(HEADER.encode() + b"zumba,a0123456789,1,11,\xff\xfe\n")
    with pytest.raises(UserError, match=r"val\.csv:2: byte 0xff at 66 is not UTF-8"):
        read_kinetics_csv(tmp_path / "val.csv", root=tmp_path, classes=CLASSES)
