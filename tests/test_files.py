from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from octvideo.class_names import ClassIndex, folder_class_names, read_class_names
from octvideo.cli import main
from octvideo.cli.video_arguments import find_videos
from octvideo.data.checking import select
from octvideo.data.manifest import read_records
from octvideo.data.preparation.folders import folder_lists
from octvideo.data.preparation.listing import compare
from octvideo.data.quarantine import read_quarantine
from octvideo.errors import UserError
from octvideo.evaluation.scores import VideoScores
from octvideo.files import (
    VIDEO_SUFFIXES,
    decode_text,
    digest,
    json_text,
    natural_key,
    one_line,
    read_text,
    text_lines,
    walk_videos,
    whole_file,
    whole_text,
    writing_in,
)

REPOSITORY = Path(__file__).resolve().parents[1]


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ── folders ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def untidy(tmp_path: Path) -> Path:
    """A folder as users have them: what their system left in it, and links."""
    root = touch(tmp_path / "set", "clap/2.mp4", "clap/10.MP4", "wave/b.avi", "wave/notes.txt")
    touch(root, "__MACOSX/clap/._2.mp4", "clap/._2.mp4", "@eaDir/x.mp4", ".ipynb_checkpoints/y.mp4", "lost+found/z.mp4")
    (root / "empty").mkdir()
    (root / "wave" / "up").symlink_to(root)  # back to where it is
    (root / "again").symlink_to(root / "clap")  # what is there already
    touch(tmp_path / "elsewhere", "deep/1.mkv")
    (root / "jump").symlink_to(tmp_path / "elsewhere")
    (root / "wave" / "linked.mp4").symlink_to(root / "wave" / "b.avi")
    return root


VIDEOS = ["clap/2.mp4", "clap/10.MP4", "jump/deep/1.mkv", "wave/b.avi", "wave/linked.mp4"]


def test_a_walk_finds_each_video_once_in_natural_order(untidy: Path) -> None:
    others: list[str] = []
    assert list(walk_videos(untidy, on_other=others.append)) == VIDEOS
    assert others == [f"{untidy}/wave/notes.txt"]
    assert list(walk_videos(untidy, leave_out=[untidy / "wave"])) == VIDEOS[:3]


def test_natural_order() -> None:
    names = ["", "1", "01", "2", "a", "a1", "a1b", "a1b2", "a2", "a10", "b"]
    assert sorted(reversed(names), key=natural_key) == ["", "01", "1", *names[3:]]


def _by_lists(root: Path) -> list[str]:
    compare(folder_lists(root, {}), root, root.parent / "lists")
    lines = (root.parent / "lists" / "train.txt").read_text().splitlines()[1:]
    return [str(root / line.rpartition(" ")[0]) for line in lines]


@pytest.mark.parametrize(
    "way",
    [
        lambda root: [record.path for record in read_records(root, root=root, classes=ClassIndex([]), labelled=False)],
        lambda root: list(find_videos([str(root)])),
        lambda root: [str(root / name) for name in select([root]).names],
        lambda root: sorted(_by_lists(root), key=lambda path: VIDEOS.index(os.path.relpath(path, root))),
    ],
    ids=["training", "infer and export", "check", "prepare list"],
)
def test_every_way_into_a_folder_finds_the_same_videos(way: Callable[[Path], list[str]], untidy: Path) -> None:
    assert way(untidy) == [str(untidy / name) for name in VIDEOS]


def test_classes_are_the_folders_with_videos(untidy: Path) -> None:
    assert folder_class_names(untidy) == ["clap", "jump", "wave"]


def test_a_folder_that_can_not_be_listed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"can't read the folder .*none: No such file or directory"):
        list(walk_videos(tmp_path / "none"))
    closed: list[tuple[str, str]] = []
    assert list(walk_videos(tmp_path / "none", on_closed=lambda *what: closed.append(what))) == []
    assert closed == [(str(tmp_path / "none"), "No such file or directory")]


# ── files that are whole or not there ───────────────────────────────────────────────────────────────────────


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    with whole_text(file, to_disk=True) as text:
        text.write("old\n")
        assert not file.exists()
    with pytest.raises(KeyboardInterrupt), whole_text(file) as text:
        text.write("new")
        raise KeyboardInterrupt
    assert file.read_bytes() == b"old\n" and names_in(tmp_path) == ["a.txt"]
    with pytest.raises(OSError), whole_file(file, keep=True) as part:
        part.write_bytes(b"half")
        raise OSError
    assert names_in(tmp_path) == [".a.txt.part", "a.txt"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, whole_file(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a")


def test_nothing_else_in_the_package_renames_what_it_has_written() -> None:
    files = [*REPOSITORY.glob("octvideo/**/*.py"), *REPOSITORY.glob("tools/**/*.py")]
    found = [f"{f}" for f in files if f.name != "files.py" and '.part"' in f.read_text(encoding="utf-8")]
    assert len(files) > 100 and found == [str(REPOSITORY / "octvideo/training/run_folder.py")]  # which removes some


def test_a_digest_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"c")
    (tmp_path / "a").write_bytes(b"ab")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, example 1
    assert digest(tmp_path) == abc and digest(tmp_path / "a", "md5") == "187ef4436122d1cc2f40dc2b92f0eba0"


# ── text ────────────────────────────────────────────────────────────────────────────────────────────────────

LINES = ["clips/é 1.mp4", "b.mp4"]


@pytest.mark.parametrize(
    "content",
    [
        "clips/é 1.mp4\nb.mp4\n".encode(),
        "clips/é 1.mp4\r\nb.mp4\r\n".encode("utf-8-sig"),
        "clips/é 1.mp4\r\nb.mp4".encode("utf-16"),
        b"\xfe\xff" + "clips/é 1.mp4\nb.mp4\n".encode("utf-16-be"),
    ],
    ids=["UTF-8", "mark and CRLF", "UTF-16", "UTF-16, big-endian"],
)
def test_what_editors_write_is_read_alike(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_bytes(content)
    videos = touch(tmp_path, *LINES)
    assert text_lines(read_text(file)) == LINES
    assert list(find_videos([f"@{file}"], are_here=False)) == LINES
    assert read_class_names(file) == LINES
    assert [entry for entry, _ in read_quarantine(file)[1]] == LINES
    records = read_records(file, root=videos, classes=ClassIndex([]), labelled=False)
    assert [record.path for record in records] == [str(tmp_path / name) for name in LINES]
    assert len(select([file], root=tmp_path).names) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a.mp4\ncaf\xe9.mp4\n", "f.txt:2: byte 0xe9 at 9 is not UTF-8 (invalid continuation byte); save the file as"),
        ("a.mp4".encode("utf-16-le"), "f.txt: a NUL at character 1: not text, or UTF-16 without its mark; save"),
        (b"\xff\xfea", "f.txt:1: byte 0x61 at 2 is not UTF-16-LE (truncated data); save"),
    ],
)
def test_text_in_another_encoding_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(UserError) as error:
        decode_text(content, "f.txt")
    assert str(error.value).startswith(said)


def test_names_of_files_may_be_any_bytes() -> None:
    assert decode_text(b"caf\xe9.mp4", "f.txt", names=True) == os.fsdecode(b"caf\xe9.mp4")
    assert text_lines("a\x85b\n\nc") == ["a\x85b", "", "c"]  # a line break to splitlines
    assert [text_lines(text) for text in ("", "\n", "a\n", "a\n\n")] == [[], [""], ["a"], ["a", ""]]


def test_errors_in_one_line() -> None:
    assert one_line(FileNotFoundError(2, "No such file", "x")) == "No such file"
    assert one_line(RuntimeError("\n  first\nsecond")) == "first"
    assert one_line(RuntimeError()) == "RuntimeError"
    assert one_line(RuntimeError("[12:00:01] /src/video.cc:12: [x] no stream")) == "no stream"
    assert one_line(RuntimeError("Check failed: st (-1 vs. 0) cannot seek")) == "cannot seek"
    assert one_line(RuntimeError("[ONNXRuntimeError] : 3 : no file")) == "[ONNXRuntimeError] : 3 : no file"


PRINTS = """
import sys
from octvideo.cli.ending import end_with
def main():
    print("é × 2 → α │ ─ 拍手 caf\\udce9.mp4")
    return 3
end_with(main)
"""


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("utf-8", "é × 2 → α │ ─ 拍手 caf".encode() + b"\xe9.mp4\n"),
        ("ascii", b"? x 2 > a | - ?? caf\xe9.mp4\n"),
        ("latin-1", b"\xe9 \xd7 2 > a | - ?? caf\xe9.mp4\n"),
    ],
)
def test_what_a_terminal_lacks_is_replaced(encoding: str, printed: bytes) -> None:
    environ = {**os.environ, "PYTHONIOENCODING": encoding}
    ended = subprocess.run([sys.executable, "-c", PRINTS], cwd=REPOSITORY, env=environ, capture_output=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, printed, b"")


@pytest.mark.slow
def test_a_table_on_a_terminal_that_has_ascii_only(tmp_path: Path) -> None:
    scores = VideoScores(
        paths=["a.mp4"], labels=torch.tensor([0]), scores=torch.tensor([[0.9, 0.1]]), class_names=["café", "拍手"]
    )
    scores.save(tmp_path / "scores.npz")
    scores.save_csv(tmp_path / "predictions.csv")
    environ = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "octvideo", "score", str(tmp_path)]
    ended = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    assert b"100.0" in ended.stdout and ended.stdout.isascii()
    assert np.load(tmp_path / "scores.npz")["class_names"].tolist() == ["café", "拍手"]
    assert "café" in (tmp_path / "predictions.csv").read_text(encoding="utf-8")


IN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
READS = "import sys; from octvideo.files import read_text; print(ascii(read_text(sys.argv[1])))"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_text_is_read_alike_in_any_locale(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_bytes("café".encode(encoding))
    command = [sys.executable, "-c", READS, tmp_path / "my.yaml"]
    printed = subprocess.check_output(command, cwd=REPOSITORY, env={**os.environ, **IN_C}, text=True)
    assert printed == "'caf\\xe9'\n"


def test_a_config_is_read_as_text_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my.yaml").write_bytes("# café\nbase: demo\ndata:\n  root: /nowhere/café\n".encode("utf-16"))
    assert main(["fit", "-c", str(tmp_path / "my.yaml")]) == 2
    assert "looked for /nowhere/café/train.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("encoding", "environ", "said"),
    [
        pytest.param("utf-8-sig", {}, "looked for /nowhere/café/train.txt", marks=pytest.mark.slow),
        pytest.param("utf-16", {}, "looked for /nowhere/café/train.txt", marks=pytest.mark.slow),
        pytest.param("utf-8", IN_C, "/nowhere/caf\\xe9/train.txt", marks=pytest.mark.slow),
        pytest.param(
            "latin-1",
            {},
            "my.yaml:1: byte 0xe9 at 5 is not UTF-8 (invalid continuation byte); save the file as UTF-8",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_configs_are_read_alike(encoding: str, environ: dict[str, str], said: str, tmp_path: Path) -> None:
    text = "# café\nbase: demo\ndata:\n  root: /nowhere/café\n"
    (tmp_path / "my.yaml").write_bytes(text.encode(encoding))
    command = [sys.executable, REPOSITORY / "tools/train.py", "--cfg", "my.yaml"]
    ended = subprocess.run(command, cwd=tmp_path, env={**os.environ, **environ}, capture_output=True, text=True)
    assert ended.returncode == 2 and said in ended.stderr, ended.stderr


def test_parts_of_killed_processes_are_taken_away_by_who_is_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    left, others = tmp_path / "a" / ".x.mp4.part", [tmp_path / name for name in (".y.part", "x.mp4.part", ".x.mp4")]
    for file in (left, *others):
        file.touch()
    with writing_in(tmp_path, ".mp4"):
        assert not left.exists() and all(file.exists() for file in others)
        left.touch()  # another process's, which came after
        with writing_in(tmp_path, ".mp4"):
            assert left.exists()
    with writing_in(tmp_path, ".mp4"):
        assert not left.exists()


def test_suffixes_of_videos_are_written_once() -> None:
    holding = [f for f in REPOSITORY.glob("octvideo/**/*.py") if '".webm", ".mov"' in f.read_text(encoding="utf-8")]
    assert ".mp4" in VIDEO_SUFFIXES and [file.name for file in holding] == ["files.py"]


def test_json_has_null_for_nan_and_infinity() -> None:
    content = {"a": [math.nan, (1.5, -math.inf)], "b": {"c": math.inf, "d": "NaN"}, "e": [True, None, 3]}
    text = json_text(content)
    assert text == '{"a": [null, [1.5, null]], "b": {"c": null, "d": "NaN"}, "e": [true, null, 3]}'
    assert json_text({"é": 1}, indent=1) == '{\n "\\u00e9": 1\n}'
    assert json_text([Path("x")], default=str) == '["x"]'


# Programs of ours that talk to each other, settings of ours that hold no results, and the program that stands alone.
OWN_JSON = {
    "data/preparation/reencode.py",
    "data/shard_writer.py",
    "data/shards.py",
    "data/synthetic.py",
    "files.py",
    "inference/standalone/classify.py",
}


def test_results_are_written_as_json_in_one_way(repo: Path) -> None:
    package = repo / "octvideo"
    writers = {str(path.relative_to(package)) for path in package.rglob("*.py") if "json.dump" in path.read_text()}
    assert writers == OWN_JSON
    assert not [path for path in (repo / "tools").glob("*.py") if "json.dump" in path.read_text()]
