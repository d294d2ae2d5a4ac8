"""Joining files of results: each video once, in the order of the list; what is missing, double or torn is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octvideo.cli import main
from octvideo.errors import UserError
from octvideo.json_joining import join_lines
from octvideo.json_lines import JsonLines, Words

INFER: dict[str, Any] = {"results": "octvideo infer 1", "weights": "a.ckpt", "engine": "eager", "precision": "f32"}
TIMELINE: dict[str, Any] = {**INFER, "results": "octvideo timeline 1"}
SUMMED: dict[str, Any] = {**INFER, "sha256": "12"}
CHECK: dict[str, Any] = {"journal": "octvideo check 1", "root": "/data", "decoder": "auto"}


def scored(path: str, score: float = 0.5) -> dict[str, Any]:
    return {"path": path, "top": [{"name": "left", "score": score}], "seconds": {"total": 1.0}}


def broken(path: str) -> dict[str, Any]:
    return {"path": path, "reason": "it is empty"}


def window(path: str, start: int) -> dict[str, Any]:
    return {"path": path, "start": start, "end": start + 1, "top": []}


def ended(path: str, windows: int, trouble: str = "") -> dict[str, Any]:
    return {"path": path, "windows": windows, "cuts": [], "trouble": trouble}


def written(file: Path, header: dict[str, Any], *lines: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in (header, *lines)))
    return file


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_lines_come_in_the_order_of_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = "\udcff é.mp4"  # no text, as names of files may be
    one = written(tmp_path / "1.jsonl", {**INFER, "part": "1/3"}, scored("c.mp4"), broken(odd))
    two = written(tmp_path / "2.jsonl", {**INFER, "part": "2/3"}, scored("a.mp4"), scored("other.mp4"))
    (tmp_path / "list.txt").write_bytes(b"a.mp4\nb.mp4\n" + b"\xff \xc3\xa9.mp4\nc.mp4\n")
    words = ["join", str(one), str(two), "-o", str(tmp_path / "all.jsonl"), "--list", f"@{tmp_path}/list.txt"]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert read(tmp_path / "all.jsonl") == [INFER, scored("a.mp4"), broken(odd), scored("c.mp4"), scored("other.mp4")]
    assert "4 videos of 2 files, 1 of them can't be read, or not to their end" in out
    assert "1 videos are not in the list; they come last" in err and "parts that were not given: 3/3" in err
    assert f"1 videos are missing, listed in {tmp_path}/all.jsonl.missing.txt:\n  b.mp4" in err
    assert (tmp_path / "all.jsonl.missing.txt").read_text() == "b.mp4\n"

    assert main(words) == 2  # nothing is replaced unasked
    assert "all.jsonl is there: name another file" in capsys.readouterr().err
    three = written(tmp_path / "3.jsonl", {**INFER, "part": "3/3"}, scored("b.mp4"))
    assert main([words[0], str(three), *words[1:], "--overwrite"]) == 0
    assert [line.get("path") for line in read(tmp_path / "all.jsonl")][2] == "b.mp4"
    assert not (tmp_path / "all.jsonl.missing.txt").exists()


def test_a_list_whose_names_begin_elsewhere_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = written(tmp_path / "1.jsonl", INFER, scored("videos/a.mp4"), scored("videos/b.mp4"))
    (tmp_path / "list.txt").write_text("/data/videos/a.mp4\n/data/videos/b.mp4\n")
    assert main(["join", str(one), "-o", str(tmp_path / "all.jsonl"), "--list", f"@{tmp_path}/list.txt"]) == 1
    said = "is /data/videos/a.mp4 of the list videos/a.mp4 of the files? Give the list as the parts got it"
    assert said in capsys.readouterr().err


def test_of_a_video_in_two_files_the_best_known_is_taken(tmp_path: Path) -> None:
    one = written(tmp_path / "1", INFER, broken("a"), scored("b", 0.1), scored("c"))
    two = written(tmp_path / "2", INFER, scored("a"), scored("b", 0.2))
    joined = join_lines([one, two], tmp_path / "all")
    assert read(tmp_path / "all")[1:] == [scored("a"), scored("b", 0.1), scored("c")]
    assert (joined.double, joined.videos, joined.unreadable) == (["a", "b"], 3, 0)


def test_windows_that_stand_apart_come_together(tmp_path: Path) -> None:
    one = written(
        tmp_path / "1",
        TIMELINE,
        window("a", 0),
        window("b", 0),
        window("a", 1),
        ended("a", 2),
        window("b", 1),
        ended("b", 2),
    )
    two = written(tmp_path / "2", TIMELINE, window("c", 0), ended("c", 1, "cut off"), window("d", 0))
    joined = join_lines([one, two], tmp_path / "all", ["d", "c", "b", "a"])
    assert [line["path"] for line in read(tmp_path / "all")[1:]] == list("dccbbbaaa")
    assert (joined.unfinished, joined.unreadable, joined.missing) == (["d"], 1, [])


def test_of_a_film_that_was_tried_again_the_last_try_counts(tmp_path: Path) -> None:
    film = window("a", 0), ended("a", 1, "cut off"), window("b", 0), window("a", 0), window("a", 1)
    joined = join_lines([written(tmp_path / "1", TIMELINE, *film)], tmp_path / "all")
    assert read(tmp_path / "all")[1:] == [film[3], film[4], film[2]] and joined.unfinished == ["a", "b"]


def test_the_last_line_of_a_journal_counts(tmp_path: Path) -> None:
    lines = [{"path": "a", "verdict": "unreadable"}, {"path": "b", "verdict": "ok"}, {"path": "a", "verdict": "ok"}]
    written(tmp_path / "1", CHECK, *lines)
    joined = join_lines([tmp_path / "1"], tmp_path / "all")
    assert read(tmp_path / "all") == [CHECK, lines[0], lines[2], lines[1]] and joined.unreadable == 0


def test_weights_are_the_same_by_any_name_where_their_checksum_is(tmp_path: Path) -> None:
    one = written(tmp_path / "1", SUMMED, scored("a"))
    two = written(tmp_path / "2", {**SUMMED, "weights": "/home/me/a.ckpt"}, scored("b"))
    join_lines([one, two], tmp_path / "all")
    assert read(tmp_path / "all") == [SUMMED, scored("a"), scored("b")]
    JsonLines(two, SUMMED, Words("", "", "")).close()
    with pytest.raises(UserError, match=r"weights: '/home/me/a.ckpt', now 'a.ckpt'"):
        JsonLines(two, {**SUMMED, "sha256": "13"}, Words("", "", ""))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({**INFER, "weights": "b.ckpt"}, r"of other settings, than .* \(weights: 'b.ckpt' and 'a.ckpt'\)"),
        ({**INFER, "views": "1x1"}, r"\(views: '1x1' and None\)"),
        ({**TIMELINE}, r"\(results: 'octvideo timeline 1' and 'octvideo infer 1'\)"),
        ({"results": "octvideo infer 2"}, "expected the results of octvideo infer or timeline"),
    ],
)
def test_other_outputs_are_refused(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    one, two = written(tmp_path / "1", INFER, scored("a")), written(tmp_path / "2", other, scored("b"))
    with pytest.raises(UserError, match=message):
        join_lines([one, two], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_a_torn_line_is_left_out_and_a_file_being_written_refused(tmp_path: Path) -> None:
    one = written(tmp_path / "1", INFER, scored("a"), scored("b"))
    one.write_bytes(one.read_bytes()[:-9])
    joined = join_lines([one], tmp_path / "all", ["a", "b"])
    assert (joined.cut_off, joined.missing, read(tmp_path / "all")) == ([one], ["b"], [INFER, scored("a")])
    lines = JsonLines(one, INFER, Words("", "", ""))
    with pytest.raises(UserError, match="another process writes"):
        join_lines([one], tmp_path / "all")
    lines.close()
    one.write_bytes(one.read_bytes() + b"no JSON\n")
    with pytest.raises(UserError, match=r"got b'no JSON\\n', expected a line of results"):
        join_lines([one], tmp_path / "all")
