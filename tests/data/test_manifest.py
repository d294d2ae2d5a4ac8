"""Lists in the formats of the field, folders, and what is wrong with those that can't be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from octvideo.class_names import ClassIndex
from octvideo.data.manifest import check_files, read_records
from octvideo.data.records import VideoRecord
from octvideo.errors import UserError

CLASSES = ClassIndex(["jump rope", "sit", "wave"])


def records(root: Path, text: str, *, labelled: bool = True, classes: ClassIndex = CLASSES) -> list[VideoRecord]:
    file = root / "list.txt"
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    return list(read_records(file, root=root, classes=classes, labelled=labelled))


def short(root: Path, text: str, **settings: bool) -> list[tuple[str, int]]:
    return [(str(Path(record.path).relative_to(root)), record.label) for record in records(root, text, **settings)]


@pytest.mark.parametrize(
    "line",
    [
        "{} 2",  # PySlowFast, mmaction2
        "{}   2  ",
        "{}\t2",
        "{},2",
        "{}, 2",
        "{};2",
        "{} ; 2",
        "{},wave",
        "{}, wave",
        "{}\twave",
        "{};wave",
        "{} wave",
    ],
)
@pytest.mark.parametrize("path", ["a.mp4", "dir/a clip of 3.mp4", "a, b; c.mp4", "-x_7 2.mp4", "no suffix/clip"])
def test_formats(tmp_path: Path, line: str, path: str) -> None:
    assert short(tmp_path, line.format(path) + "\n") == [(path, 2)]


def test_a_class_name_of_two_words(tmp_path: Path) -> None:
    assert short(tmp_path, "a b.mp4,jump rope\nc.mp4\tjump_rope\n") == [("a b.mp4", 0), ("c.mp4", 0)]


def test_comments_empty_lines_and_marks(tmp_path: Path) -> None:
    text = "\ufeffa.mp4 0\r\n# b.mp4 1\n\n   \n  # c\nd.mp4 1"
    assert short(tmp_path, text) == [("a.mp4", 0), ("d.mp4", 1)]


def test_absolute_paths_stay(tmp_path: Path) -> None:
    assert records(tmp_path / ".", "/data/a.mp4 1\n") == [VideoRecord("/data/a.mp4", 1)]


def test_names_that_are_no_text_reach_the_file(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.mp4 1\n")
    (record,) = read_records(tmp_path / "list.txt", root=tmp_path, classes=CLASSES)
    assert record.path == str(tmp_path / "caf\udce9.mp4")


def test_without_labels(tmp_path: Path) -> None:
    text = "a b.mp4\nc.mp4 1\nd.mp4 -1\ne, f.mp4\n"
    assert short(tmp_path, text, labelled=False) == [("a b.mp4", -1), ("c.mp4", 1), ("d.mp4", -1), ("e, f.mp4", -1)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b.mp4 3", "label 3, expected 0 to 2"),
        ("b.mp4 -2", "label -2, expected 0 to 2"),
        ("b.mp4 -1", "got 'b.mp4 -1', expected 'path label'"),
        ("b.mp4", "got 'b.mp4', expected 'path label'"),
        ("a, b.mp4", "got 'a, b.mp4', expected 'path label'"),
        ("b.mp4,weve", r"'weve' is no known class, did you mean 'wave'\?"),
        ("b.mp4,quux", "'quux' is no known class$"),
        ("frames/b 120 2", "frames/b is a folder of frames: say how its images are called, such as data.frame_names"),
        ("frames/b 2 2", "frames/b is a folder of frames"),
        ("b.mp4 300 2", r"got several numbers after b\.mp4, expected 'path label'"),
        ("b.mp4,1,2", r"got several numbers after b\.mp4, expected 'path label'"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "frames/b").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"list\.txt:3: {message}"):
        records(tmp_path, f"# a comment\na.mp4 0\n{line}\n")


# ── numbers, and forms of csv ───────────────────────────────────────────────────────────────────────────────

FROM_ONE = ClassIndex(["1", "2", "3"])


def labels(root: Path, text: str, classes: ClassIndex = FROM_ONE) -> list[int]:
    return [record.label for record in records(root, text, classes=classes)]


@pytest.mark.parametrize("mark", [",", ";", "\t", ", "])
def test_after_a_comma_a_number_is_a_name(tmp_path: Path, mark: str) -> None:
    assert labels(tmp_path, f"a.mp4{mark}1\nb.mp4{mark}2\n") == [0, 1]
    assert labels(tmp_path, f"a.mp4{mark}1\n", CLASSES) == [1]  # no class is called so: an id
    with pytest.raises(UserError, match=r"list\.txt:2: no class is called 0: .* write an id after a space, 'path 0'"):
        labels(tmp_path, f"a.mp4{mark}1\nb.mp4{mark}0\n")


def test_after_a_space_all_numbers_of_a_list_are_ids_or_all_are_names(tmp_path: Path) -> None:
    assert labels(tmp_path, "a.mp4 0\nb.mp4 2\n") == [0, 2]
    assert labels(tmp_path, "a.mp4 1\nb.mp4 3\n") == [0, 2]
    with pytest.raises(
        UserError, match=r"list\.txt:1: the label 1 is the class called '1' \(id 0\) if it is a name, and"
    ):
        labels(tmp_path, "a.mp4 1\nb.mp4 2\n")
    assert labels(tmp_path, "a.mp4 1\nb.mp4 2\n", ClassIndex(["0", "1", "2"])) == [1, 2]


@pytest.mark.parametrize(
    "text",
    [
        '"a, b.mp4",wave\nc.mp4,"jump rope"\n',
        "'a, b.mp4';'wave'\nc.mp4;'jump rope'\n".replace("'", '"'),
        "a, b.mp4\twave\nc.mp4\tjump rope\n",
        '"a, b.mp4" 2\n"c.mp4" 0\n',
        "a, b.mp4 wave\nc.mp4 jump rope\n",
        'path,label\n"a, b.mp4",wave\nc.mp4,jump rope\n',
        "Label;Path\nwave;a, b.mp4\n0;c.mp4\n",
        "id\tfps\tclass_id\tvideo_path\n7\t25\t2\ta, b.mp4\n8\t25\t0\tc.mp4\n",
    ],
)
def test_forms_of_csv(tmp_path: Path, text: str) -> None:
    assert short(tmp_path, text) == [("a, b.mp4", 2), ("c.mp4", 0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4,wave,clap\n", r"list\.txt:1: got 'wave,clap' after a\.mp4, expected one label: 'path,label'"),
        ("a.mp4,wave,sit\n", r"list\.txt:1: got 'wave,sit' after a\.mp4, expected one label: 'path,label'"),
        ("a.mp4;wave;2\n", r"list\.txt:1: got 'wave;2' after a\.mp4, expected one label: 'path,label'"),
        ("a.mp4 wave sit\n", r"list\.txt:1: 'wave sit' is no known class"),
        (
            "path,label\na, b.mp4,wave\n",
            r"list\.txt:2: got 3 columns, expected those of the first line, path,label; a path that holds",
        ),
    ],
)
def test_lines_of_more_than_a_path_and_a_label(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        records(tmp_path, text)


def test_a_video_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(bytes(9))
    with pytest.raises(UserError, match=r"a\.mp4 is a video: expected a list of videos, or a folder of them"):
        read_records(tmp_path / "a.mp4", root=tmp_path, classes=CLASSES)


def test_a_class_whose_name_holds_a_comma(tmp_path: Path) -> None:
    classes = ClassIndex(["lifting, then dropping", "sit"])
    assert labels(tmp_path, "a.mp4,lifting, then dropping\nb.mp4,sit\n", classes) == [0, 1]


def test_an_empty_list(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"list\.txt lists no video"):
        records(tmp_path, "# nothing\n")


def test_a_list_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"can't read .*missing\.txt: No such file or directory"):
        read_records(tmp_path / "missing.txt", root=tmp_path, classes=CLASSES)


# ── folders ─────────────────────────────────────────────────────────────────────────────────────────────────


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def in_folder(root: Path, **settings: bool) -> list[tuple[str, int]]:
    found = read_records(root, root=root, classes=CLASSES, **settings)
    return [(str(Path(record.path).relative_to(root)), record.label) for record in found]


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "wave/b.MP4", "wave/a b.mkv", "jump_rope/deep/er/c.avi", "wave/notes.txt", "classes.txt")
    touch(tmp_path, ".cache/x.mp4", "wave/._a b.mkv", "wave/.part/y.mp4")
    expected = [("jump_rope/deep/er/c.avi", 0), ("wave/a b.mkv", 2), ("wave/b.MP4", 2)]
    assert in_folder(tmp_path) == expected


def test_class_folders_may_be_links(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/w/a.mp4")
    (tmp_path / "set").mkdir()
    try:
        (tmp_path / "set/wave").symlink_to(tmp_path / "elsewhere/w", target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    assert in_folder(tmp_path / "set") == [("wave/a.mp4", 2)]


def test_an_unknown_class_folder(tmp_path: Path) -> None:
    touch(tmp_path, "sit/a.mp4", "weve/b.mp4")
    with pytest.raises(UserError, match=r"weve: 'weve' is no known class, did you mean 'wave'\?"):
        in_folder(tmp_path)
    assert in_folder(tmp_path, labelled=False) == [("sit/a.mp4", 1), ("weve/b.mp4", -1)]


def test_a_video_beside_the_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "sit/a.mp4", "b.mp4")
    with pytest.raises(UserError, match=r"b\.mp4 lies in no class folder: expected .*/<class>/b\.mp4"):
        in_folder(tmp_path)
    assert in_folder(tmp_path, labelled=False) == [("b.mp4", -1), ("sit/a.mp4", 1)]


def test_a_folder_without_videos(tmp_path: Path) -> None:
    touch(tmp_path, "sit/a.jpg")
    with pytest.raises(UserError, match="lists no video"):
        in_folder(tmp_path)


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wrong_root_is_found_before_the_run(tmp_path: Path) -> None:
    listed = [VideoRecord(str(tmp_path / f"{n}.mp4"), 0) for n in range(1000)]
    with pytest.raises(UserError) as error:
        check_files(listed, "train.txt", "data/README.md tells how")
    looked = len(listed[:: 1000 // 64])
    assert str(error.value) == (
        f"none of the videos of train.txt is there: looked for {looked} of its 1000, the first {tmp_path}/0.mp4. "
        "Paths in a list start from data.root. data/README.md tells how"
    )


def test_single_missing_files_are_left_to_reading(tmp_path: Path) -> None:
    touch(tmp_path, "0.mp4")
    check_files([VideoRecord(str(tmp_path / f"{n}.mp4"), 0) for n in range(100)], "train.txt")


# ── several labels ──────────────────────────────────────────────────────────────────────────────────────────


def several(root: Path, text: str, classes: ClassIndex = CLASSES) -> list[tuple[int, ...]]:
    (root / "list.txt").write_text(text)
    found = read_records(root / "list.txt", root=root, classes=classes, several=True)
    assert all(record.path == str(root / "dir/a b.mp4") for record in found)
    return [(record.label, *record.others) for record in found]


@pytest.mark.parametrize(
    "line",
    [
        "dir/a b.mp4 wave;jump rope",
        "dir/a b.mp4,wave;jump rope",
        "dir/a b.mp4 2;0",
        "dir/a b.mp4 2 0",
        "dir/a b.mp4\twave ; jump_rope;wave",
        '"dir/a b.mp4","wave;jump rope"',
        'path,label\ndir/a b.mp4,"wave;0"',
    ],
)
def test_forms_of_several_labels(tmp_path: Path, line: str) -> None:
    assert several(tmp_path, f"{line}\n") == [(2, 0)]


def test_names_that_hold_a_semicolon(tmp_path: Path) -> None:
    classes = ClassIndex(["sit; stand", "wave"])
    lines = ["sit; stand", 'wave;"sit; stand"', '"sit; stand";wave', '"sit; stand"']
    text = "".join(f"dir/a b.mp4 {line}\n" for line in lines)
    assert several(tmp_path, text, classes) == [(0,), (1, 0), (0, 1), (0,)]
    with pytest.raises(UserError, match=r"list\.txt:1: 'a;b' is a class, and so is each part of it: rename the class"):
        several(tmp_path, "dir/a b.mp4 a;b\n", ClassIndex(["a;b", "a", "b"]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dir/a b.mp4 wave;", r"list\.txt:1: got the labels 'wave;', expected 'path label;label'"),
        ("dir/a b.mp4 wave;clap", r"list\.txt:1: 'clap' is no known class"),
        ("dir/a b.mp4 0;-1", r"list\.txt:1: got 'dir/a b.mp4 0;-1', expected 'path label'"),
        ("dir/a b.mp4 0;7", r"list\.txt:1: label 7, expected 0 to 2"),
    ],
)
def test_mistakes_in_several_labels(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        several(tmp_path, f"{line}\n")
