"""Class names: shipped lists, files, folders, names that are nearly right, numbers, and two lists compared."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from octvideo.class_names import (
    SHIPPED,
    ClassIndex,
    class_difference,
    folder_class_names,
    match_classes,
    read_class_names,
)
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


@pytest.mark.parametrize(
    "content",
    [
        '["wave", "jump rope", "sit"]',
        '{"sit": 2, "wave": 0, "jump rope": 1}',
        '{"sit": "3", "wave": "1", "jump rope": "2"}',
        '{"2": "sit", "0": "wave", "1": "jump rope"}',
        "0 wave\n1 jump rope\n2 sit\n",
        "1 wave\n2 jump rope\n3 sit\n",  # UCF101's classInd.txt
        "2, sit\n0, wave\n1, jump rope\n",
        'id,name\n0,wave\n1,"jump rope"\n2,sit\n',  # Kinetics' label maps
        "wave,0\nsit,2\njump rope,1\n",
        "0: wave\n1: jump rope\n2: sit\n",
        "1. wave\n2. jump rope\n3. sit\n",
        "idx,name\n0,wave\n1,jump rope\n2,sit\n",
        ",name\n0,wave\n1,jump rope\n2,sit\n",  # pandas
    ],
)
def test_numbered_and_json_files(tmp_path: Path, content: str) -> None:
    (tmp_path / "classes.txt").write_text(content)
    assert read_class_names(tmp_path / "classes.txt") == ["wave", "jump rope", "sit"]


@pytest.mark.parametrize(
    "names",
    [
        ["0", "1", "10", "2"],
        ["level 1", "level 2"],
        ["1 hand", "wave"],
        ["[Something] falls", "[Something] lies"],
        ["name", "wave"],
    ],
)
def test_names_that_only_look_numbered_stay(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(names))
    assert read_class_names(tmp_path / "classes.txt") == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0 wave\n1 sit\n3 jump\n", "the classes are not numbered from 0 to 2: 'jump' has 3, and none has 2. Write a"),
        ('{"wave": 1, "sit": 1}', "the classes are not numbered from 1 to 2: 'wave' has 1, and none has 2. Write a"),
        ('{"0": "1", "1": "0"}', "of two numbers in quotes either may be the id: write {name: id}, ids without them"),
        ('{"wave": [1, 2]}', "got other JSON than class names: expected a name a line in the order of the ids"),
        ("[0, 1]", "got other JSON than class names: expected a name a line"),
        ('["wave",', "can't be read as JSON: Expecting value"),
        ("[]", "holds no class names: expected a name a line"),
        ("{}", "got other JSON than class names: expected a name a line"),
        ("id,name\n0,wave\nsit\n", "below 'id,name' not every line is an id and a name: expected a name a line"),
    ],
)
def test_files_that_can_be_read_in_two_ways_or_none(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        read_class_names(tmp_path / "classes.txt")


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9"), "wave\nclap"])
def test_a_class_folder_whose_name_is_not_text_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.mp4").touch()
    with pytest.raises(UserError, match=re.escape(f"a class can't be called {name!r}: rename the folder, in UTF-8")):
        folder_class_names(tmp_path)


def test_folders_that_are_numbers_are_sorted_by_number(tmp_path: Path) -> None:
    for name in [*map(str, range(12)), "wave/more"]:
        (tmp_path / name).mkdir(parents=True)
    for number in range(12):
        (tmp_path / str(number) / "a.mp4").touch()
    assert folder_class_names(tmp_path) == [str(number) for number in range(12)]
    (tmp_path / "wave/more/a.mp4").touch()
    assert folder_class_names(tmp_path)[:4] == ["0", "1", "10", "11"]


def test_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("wave", "Jump", ".cache", "a b", "__MACOSX/wave", "@eaDir"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.mp4").touch()
    for name in ("empty", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / "list.txt").touch()
    assert folder_class_names(tmp_path) == ["Jump", "a b", "wave"]
    assert caplog.messages == [f"{tmp_path}: folders without videos of their own are no classes: 'empty'"]
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


def test_a_name_that_is_none() -> None:
    index = ClassIndex(["abseiling", "zumba"])
    assert index.need("zumba", "a.csv:1") == 1
    for name, message in (("abseilling", ", did you mean 'abseiling'?"), ("quux", "")):
        with pytest.raises(UserError) as error:
            index.need(name, "a.csv:1")
        assert str(error.value) == f"a.csv:1: {name!r} is no known class{message}"


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────────────────

FROM_ONE = ClassIndex(["1", "2", "3"])


def test_a_number_is_a_name_where_that_is_said() -> None:
    assert [FROM_ONE.id_of("1", "a", is_name=is_name) for is_name in (True, False)] == [0, 1]
    assert FROM_ONE.id_of("-1", "a", is_name=True) == -1
    words = ClassIndex(["sit", "wave"])
    assert [words.id_of("1", "a", is_name=is_name) for is_name in (True, False)] == [1, 1]
    with pytest.raises(UserError, match=r"^a: no class is called 0: .* write an id after a space, 'path 0'$"):
        FROM_ONE.id_of("0", "a", is_name=True)
    with pytest.raises(UserError, match=r"^a: label 3, expected 0 to 2 \(ids start at 0\)$"):
        FROM_ONE.id_of("3", "a", is_name=False)


def test_a_whole_list_decides_what_its_numbers_are() -> None:
    def are_names(*labels: str) -> bool:
        return FROM_ONE.numbers_are_names((f"a:{number}", label) for number, label in enumerate(labels, 1))

    assert are_names("1", "3") and not are_names("1", "0") and not are_names() and are_names("-1", "3")
    with pytest.raises(UserError) as error:
        are_names("2", "1")
    assert str(error.value) == (
        "a:1: the label 2 is the class called '2' (id 1) if it is a name, and the class called '3' if it is an id; all "
        "numbers here can be both. Write names, after a comma: 'path,2' or 'path,3'"
    )
    from_zero = ClassIndex([str(number) for number in range(12)])
    assert not from_zero.numbers_are_names([("a:1", "2")])  # both are the same


# ── two lists ───────────────────────────────────────────────────────────────────────────────────────────────


def test_classes_compare_by_name() -> None:
    same, other_order = match_classes(["jump_rope", "sit"], ["jump rope", "sit"]), match_classes("abc", "bca")
    assert (same.order, same.said, same.reorders) == ([0, 1], "", False)
    assert (other_order.order, other_order.reorders) == ([1, 2, 0], True)
    assert other_order.said == "the same classes in another order: its head is re-ordered by name ('b' 1 -> 0)"
    assert match_classes("abc", "abd").order is match_classes("abc", "ab").order is None
    assert match_classes("abc", "abd").said == "other classes than the data (with 'c', without 'd')"
    assert class_difference("abcdefgh", "a") == "with 'b', 'c', 'd', 'e', 'f' and 2 more"
    # As folders called by numbers were once sorted.
    assert match_classes(["0", "1", "10", "2"], ["0", "1", "2", "10"]).order == [0, 1, 3, 2]


def test_weights_without_names_are_said_to_have_none() -> None:
    for nameless in (None, ["0", "1"]):
        match = match_classes(nameless, ["sit", "wave"])
        assert match.order == [0, 1] and not match.reorders
        assert match.said == "no class names: its classes are taken for the data's in their order"
    assert match_classes(["0", "1"], ["1", "2"]).order is None  # numbers are names there
    match = match_classes(["0", "1", "2"], ["sit", "wave"])
    assert match.order is None and match.said == "3 classes without names, and the data has 2"
