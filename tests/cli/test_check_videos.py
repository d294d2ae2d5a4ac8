"""`octvideo check` as the user runs it: every verdict, kills and reruns, strange names, many files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest
from torch import Tensor

from octvideo.cli import main
from octvideo.cli.check import Shown
from octvideo.data.checking import Journal, Summary, check_all, select
from octvideo.data.quarantine import printable, read_quarantine
from octvideo.errors import UserError
from octvideo.video.checking import Check
from tests.video.isolated_work import at_once, by_name

Run = Callable[..., tuple[int, str, str]]
Make = Callable[..., Path]


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process; returns its exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["check", *map(str, words), "-o", str(tmp_path / "out")])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, encode: Make, moving: Callable[..., Tensor]) -> Path:
    return encode(tmp_path_factory.mktemp("good") / "good.mp4", moving(40, 64, 96), g=8, movflags="faststart")


def journal(tmp_path: Path) -> dict[str, dict[str, Any]]:
    lines = (tmp_path / "out" / "journal.jsonl").read_text("ascii").splitlines()
    return {entry["path"]: entry for entry in map(json.loads, lines[1:])}


@pytest.fixture
def videos(tmp_path: Path, good: Path) -> Path:
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    content = good.read_bytes()
    (folder / "sub" / "good.mp4").write_bytes(content)
    (folder / "cut.mp4").write_bytes(content[: len(content) * 2 // 3])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("hello\n" * 100)
    (folder / "lost.mp4").symlink_to(folder / "nothing.mp4")
    (folder / "notes.txt").write_text("not a video")
    return folder


# ── verdicts ────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_verdict_is_told(check: Run, videos: Path, tmp_path: Path) -> None:
    code, out, err = check(videos, "--num_workers", 2)
    assert code == 1, err
    found = journal(tmp_path)
    got = {name: (entry["verdict"], entry["reason"]) for name, entry in found.items()}
    cut = found["cut.mp4"]["frames"]
    assert 5 < cut < 40
    assert got == {
        "sub/good.mp4": ("ok", ""),
        "cut.mp4": ("partly", f"{cut} of 40 frames can be read"),
        "empty.mp4": ("unreadable", "the file is empty"),
        "text.mp4": ("unreadable", "Invalid data found when processing input"),
        "lost.mp4": ("unreadable", "no such file"),
    }
    assert [found["sub/good.mp4"][key] for key in ("frames", "announced")] == [40, 40]
    with av.open(str(videos / "cut.mp4")) as container:  # an independent count
        (stream,) = container.streams.video
        decodable = 0
        with contextlib.suppress(av.FFmpegError):
            for packet in container.demux(stream):
                if packet.size:
                    decodable += len(packet.decode())
        decodable += len(stream.codec_context.decode(None))
    assert cut == decodable
    root, entries = read_quarantine(tmp_path / "out" / "quarantine.txt")
    assert root == str(videos) and sorted(path for path, _ in entries) == ["empty.mp4", "lost.mp4", "text.mp4"]
    assert "1 files of the folders are not called like videos and were passed over" in out
    assert f"--data.quarantine {tmp_path / 'out' / 'quarantine.txt'}" in out.replace("\n", "")


def test_all_is_well(check: Run, good: Path) -> None:
    code, _, err = check(good)
    assert code == 0, err


def test_files_of_which_too_little_can_be_read_are_quarantined_if_wanted(
    check: Run, videos: Path, tmp_path: Path
) -> None:
    check(videos / "cut.mp4", videos / "sub" / "good.mp4", "--min_readable", 0.99)
    _, entries = read_quarantine(tmp_path / "out" / "quarantine.txt")
    assert [path for path, _ in entries] == ["cut.mp4"]


def test_mistakes(check: Run, videos: Path, tmp_path: Path) -> None:
    assert check(tmp_path / "none")[0] == 2
    (tmp_path / "bare").mkdir()
    for words, what in (
        ([tmp_path / "none"], f"error: nothing at {tmp_path / 'none'}"),
        ([tmp_path / "bare"], f"error: no videos in {tmp_path / 'bare'}"),
        ([videos, "--root", tmp_path / "none"], f"error: no folder {tmp_path / 'none'}"),
        ([videos, "--timeout", 0], "error: --timeout: got 0, expected more than 0"),
    ):
        code, _, err = check(*words)
        assert code == 2 and what in err
    check(videos)
    code, _, err = check(videos, "--decoder", "pyav")
    assert code == 2 and "is of another check (decoder: 'auto', now 'pyav')" in err


def test_a_missing_decoder_quarantines_nothing(
    check: Run, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("torchcodec", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, module, None)
    code, _, err = check(good, "--decoder", "torchcodec", "--output", tmp_path / "out")
    assert code == 2 and "error: decoder: got 'torchcodec', which " in err
    assert not (tmp_path / "out").exists()


def test_a_real_crash_hang_and_growth_are_verdicts(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("crash", "hang", "grow", "fine"):
        shutil.copy(good, folder / f"{name}.mp4")
    with Journal(tmp_path / "out", root=str(folder), decoder="auto") as written:
        settings: Any = {"num_processes": 2, "memory_bytes": 2**28, "work": by_name}
        hangs, others = select([folder / "hang.mp4"]), select([folder / f"{n}.mp4" for n in ("crash", "grow", "fine")])
        check_all(hangs, written, decoder="auto", timeout_s=1.0, **settings)
        # The others end in time on a machine that is busy, too.
        check_all(others, written, decoder="auto", timeout_s=120.0, **settings)
    assert {name: entry["reason"] for name, entry in journal(tmp_path).items()} == {
        "crash.mp4": "crashed (signal 11, SIGSEGV)",
        "hang.mp4": "timeout: no sign of life for 1 s",
        "grow.mp4": "out of memory: it takes more than 0.25 GiB",
        "fine.mp4": "",
    }


@pytest.mark.slow
def test_odd_files(check: Run, real_videos: Path, tmp_path: Path) -> None:
    some = [file for file in sorted((real_videos / "odd").iterdir()) if not file.name.startswith(("huge", "MANIFEST"))]
    assert check(*some)[0] == 1
    found = journal(tmp_path)
    assert len(found) == len(some)
    for name, entry in found.items():
        kind = name.partition("__")[0]
        if kind in ("empty", "not_video", "audio_only", "subtitle_only", "zero_frames", "corrupt_all", "corrupt_open"):
            assert entry["verdict"] == "unreadable", entry
        if kind in ("rotation", "pixfmt", "odd_size", "vfr", "one_frame", "bframes_pyramid", "sar", "long"):
            assert entry["verdict"] == "ok", entry
        assert not entry["reason"].startswith(("crashed", "timeout", "out of memory")), entry


# ── what to check ───────────────────────────────────────────────────────────────────────────────────────────


def test_lists_csv_links_and_repetitions(check: Run, good: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("train/abcdefghijk_000001_000011.mp4", "train/b c.mp4", "val/d.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(good, root / name)
    (root / "train.csv").write_text("label,youtube_id,time_start,time_end,split\nany thing,abcdefghijk,1,11,train\n")
    (root / "list.txt").write_text("train/b c.mp4,riding a bike\nval/d.mp4 7\nval/d.mp4 wave\nval/e.mp4 3\n")
    (root / "link").symlink_to(root / "train")
    (root / "train" / "loop").symlink_to(root)
    code, out, _ = check(root / "train.csv", root / "list.txt", root / "link", root / "val")
    assert code == 1  # val/e.mp4 is listed and not there
    found = {name: entry["verdict"] for name, entry in journal(tmp_path).items()}
    assert found == {
        "train/abcdefghijk_000001_000011.mp4": "ok",
        "train/b c.mp4": "ok",
        "val/d.mp4": "ok",
        "val/e.mp4": "unreadable",
    }
    assert "files were named more than once" in out


def test_strange_names(check: Run, good: Path, tmp_path: Path) -> None:
    names = ["tab\there.mp4", "line\nbreak.mp4", "#a \\n.mp4", "-f.mp4", "a:b.mp4", "été.mp4", "[red]x.mp4"]
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in names:
        shutil.copy(good, folder / name)
    bad = "caf\udce9\n.mp4"  # Latin-1 on the disk
    try:
        (folder / bad).write_text("no video")
    except OSError:
        bad = "a\n.mp4"
        (folder / bad).write_text("no video")
    code, out, err = check(folder)
    assert code == 1, err
    assert {name for name, entry in journal(tmp_path).items() if entry["verdict"] == "ok"} == set(names)
    assert read_quarantine(tmp_path / "out" / "quarantine.txt")[1] == [(bad, journal(tmp_path)[bad]["reason"])]
    assert "such as caf\\udce9\\n.mp4" in out or "such as a\\n.mp4" in out
    assert "9 of them" not in out and "8 of them were known" in check(folder)[1]


# ── going on ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_rerun_looks_only_at_what_is_new_or_changed(check: Run, videos: Path, good: Path, tmp_path: Path) -> None:
    check(videos)
    lines = (tmp_path / "out" / "journal.jsonl").read_text().count("\n")
    assert lines == 6
    code, out, _ = check(videos)
    assert code == 1 and "4 of them were known" in out  # a file that is not there may come back
    shutil.copy(good, videos / "cut.mp4")
    shutil.copy(good, videos / "new.mp4")
    os.utime(videos / "sub" / "good.mp4", ns=(1, 1))
    assert check(videos)[0] == 1
    added = (tmp_path / "out" / "journal.jsonl").read_text().splitlines()[lines + 1 :]
    assert sorted(json.loads(line)["path"] for line in added) == ["cut.mp4", "lost.mp4", "new.mp4", "sub/good.mp4"]
    shutil.copy(good, videos / "empty.mp4")
    assert "4 of them were known" not in check(videos, "--retry")[1]
    assert journal(tmp_path)["empty.mp4"]["verdict"] == "ok"
    assert [path for path, _ in read_quarantine(tmp_path / "out" / "quarantine.txt")[1]] == ["lost.mp4", "text.mp4"]


def test_a_line_that_was_half_written_is_written_again(check: Run, videos: Path, tmp_path: Path) -> None:
    check(videos)
    file = tmp_path / "out" / "journal.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    check(videos)
    assert set(journal_lines(file)) == {"sub/good.mp4", "cut.mp4", "empty.mp4", "text.mp4", "lost.mp4"}


def journal_lines(file: Path) -> list[str]:
    names = []
    for line in file.read_text().splitlines()[1:]:
        try:
            names.append(json.loads(line)["path"])
        except ValueError:
            continue
    return names


def test_one_writes_at_a_time(check: Run, videos: Path, tmp_path: Path) -> None:
    with Journal(tmp_path / "out", root=str(videos), decoder="auto"):
        code, _, err = check(videos)
    assert code == 2 and "another process writes" in err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "journal.jsonl").write_text("my diary\n")
    with pytest.raises(UserError, match="is no journal of this tool"):
        Journal(tmp_path / "other", root="/", decoder="auto")
    assert (tmp_path / "other" / "journal.jsonl").read_text() == "my diary\n"


def test_a_long_file_says_how_far_it_is(tmp_path: Path, encode: Make, moving: Callable[..., Tensor]) -> None:
    """Its frames come in pieces of 64 MB, and each may take minutes."""
    long = encode(tmp_path / "long.mp4", moving(100, 480, 640), preset="ultrafast")
    selection, said = select([long]), list[tuple[str, int, int]]()
    settings = {"decoder": "auto", "num_processes": 1, "timeout_s": 60.0, "memory_bytes": 2**30}
    with Journal(tmp_path / "out", root=selection.root, decoder="auto") as written:
        check_all(selection, written, **settings, tell_within=lambda *far: said.append(far))  # type: ignore[arg-type]
    assert (said[0], said[1][::2]) == (("long.mp4", 0, 0), ("long.mp4", 100)) and 0 < said[1][1] < 100


def test_what_is_shown() -> None:
    shown = list[str]()
    bar = Shown(SimpleNamespace(update=lambda done=None, said="": shown.append(f"{done} {said}")))
    bar.within("a/long\udcff.mp4", 0, 0)  # it has just started
    bar.within("a/long\udcff.mp4", 50, 200)
    summary = Summary()
    summary.add("b.mp4", Check("ok", 1, 1))
    summary.num_known = 1
    bar.files(summary, "b.mp4")
    bar.within("a/long\udcff.mp4", 150, 200)
    summary.add("a/long\udcff.mp4", Check("partly", 150, 200))
    summary.num_known = 2
    bar.files(summary, "a/long\udcff.mp4")
    name = printable("long\udcff.mp4")
    assert shown == [
        f"None {name} 25%",
        f"1 1 ok, 0 partly, 0 unreadable; 0.0 files/s; {name} 25%",
        f"None 1 ok, 0 partly, 0 unreadable; 0.0 files/s; {name} 75%",
        "2 1 ok, 1 partly, 0 unreadable; 0.0 files/s",
    ]


@pytest.mark.slow
def test_a_kill_loses_at_most_what_is_in_flight(repo: Path, good: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "videos", tmp_path / "out"
    folder.mkdir()
    for n in range(150):
        (folder / f"{n}.mp4").hardlink_to(good)
    command = [sys.executable, "-m", "octvideo", "check", str(folder), "-o", str(out), "--num_workers", "2"]
    with subprocess.Popen(command, cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tool:
        while not (out / "journal.jsonl").exists() or len(journal_lines(out / "journal.jsonl")) < 20:
            assert tool.poll() is None
            time.sleep(0.01)
        tool.send_signal(signal.SIGKILL)
    before = journal_lines(out / "journal.jsonl")
    assert 20 <= len(before) < 150 and not (out / "quarantine.txt").exists()
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = Counter(journal_lines(out / "journal.jsonl"))
    assert len(counts) == 150 and set(counts.values()) == {1}
    assert f"{len(before)} of them were known from before" in done.stdout


# ── many ────────────────────────────────────────────────────────────────────────────────────────────────────


def memory_and_time_of(number: int, folder: Path) -> tuple[int, float]:
    """Listing, checking and listing again so many files; bytes that Python holds at most, seconds of CPU."""
    import tracemalloc

    (folder / "list.txt").write_text("".join(f"train/class {n % 400}/video {n:08d}.mp4 1\n" for n in range(number)))
    start = time.process_time()
    tracemalloc.start()
    selection = select([folder / "list.txt"], root=folder)
    settings = {"num_processes": 1, "timeout_s": 600.0, "memory_bytes": 2**30, "work": at_once}
    with Journal(folder / "out", root=selection.root, decoder="auto") as written:
        first = check_all(selection, written, decoder="auto", **settings)  # type: ignore[arg-type]
        assert first.verdicts.total() == number and len(written.known()) == number
        assert len(written.not_ok()) == first.verdicts["unreadable"] == number // 10
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak, time.process_time() - start


@pytest.mark.slow
def test_many_files_take_little_memory(tmp_path: Path) -> None:
    peak, _ = memory_and_time_of(8000, tmp_path)
    # 1.5 kB each (most of it the lines of the list and the records that become the selection), so 0.4 GB for 240,000.
    assert peak / 8000 < 1500


@pytest.mark.slow
def test_240_000_files(tmp_path: Path) -> None:
    peak, seconds = memory_and_time_of(240_000, tmp_path)
    assert peak < 2**29 and seconds < 600  # tracemalloc makes it several times slower
