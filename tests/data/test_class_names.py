"""Class names: shipped lists, files, folders, and names that are nearly right."""

from __future__ import annotations

from pathlib import Path

import pytest

from octvideo.data.class_names import SHIPPED, ClassIndex, folder_class_names, read_class_names
from octvideo.errors import UserError


@pytest.mark.parametrize(("source", "count"), [("kinetics400", 400), ("kinetics600", 600), ("kinetics700", 700)])
def test_shipped_lists(source: str, count: int) -> None:
    names = read_class_names(source)
    assert len(names) == len(set(names)) == count
    assert source in SHIPPED
    assert names[0] == "abseiling" and names[-1] == "zumba"


def test_kinetics_ids_are_those_of_the_raw_names() -> None:
    """Folder names without brackets, sorted, would swap these two."""
    names = read_class_names("kinetics400")
    assert names == sorted(names)
    assert names[308:310] == ["skiing (not slalom or crosscountry)", "skiing crosscountry"]
    assert sorted(names, key=lambda name: name.replace("(", ""))[308:310] == names[309:307:-1]


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("\ufeffwave\n\n  jump rope \r\nété\n", encoding="utf-8")
    assert read_class_names(file) == read_class_names(str(file)) == ["wave", "jump rope", "été"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            r"no class names at .*classes\.txt: give a text file with a name a line, or one of",
        ),
        (
            b"\xff\xfe\x00",
            r"classes\.txt:1: byte 0x00 at 2 is not UTF-16-LE \(truncated data\); save the file as UTF-8",
        ),
        (b"\n \n", r"classes\.txt holds no class names: expected a name a line"),
        (b"a\nb\na\n", r"classes\.txt has the class 'a' more than once"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "classes.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_class_names(file)


def test_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("wave", "Jump", ".cache", "a b", "__MACOSX/wave", "@eaDir"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.mp4").touch()
    for name in ("empty", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / "list.txt").touch()
    assert folder_class_names(tmp_path) == ["Jump", "a b", "wave"]
    assert caplog.messages == [f"{tmp_path}: folders without videos are no classes: 'empty'"]
    with pytest.raises(UserError, match=r"empty has no class folders with videos: expected .*empty/<class>/<video>"):
        folder_class_names(tmp_path / "empty")


def test_names_as_folders_write_them() -> None:
    index = ClassIndex(["jump rope", "massaging person's head", "wave"])
    assert index.find("jump rope") == index.find("jump_rope") == index.find("Jump-Rope") == 0
    assert index.find("massaging_person's_head") == 1
    assert index.find("waves") is None


def test_names_that_differ_in_a_separator_alone_stay_apart() -> None:
    index = ClassIndex(["sit_up", "sit up", "wave"])
    assert (index.find("sit_up"), index.find("sit up"), index.find("sit-up")) == (0, 1, None)


def test_suggestions() -> None:
    index = ClassIndex(["abseiling", "zumba"])
    assert index.suggestion("abseilling") == ", did you mean 'abseiling'?"
    assert index.suggestion("quux") == ""
