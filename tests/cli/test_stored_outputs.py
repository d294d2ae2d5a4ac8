"""Outputs that lie beside a store's videos: shards, features, smaller copies and journals, put into a bucket."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import octvideo.stores.copies as copies
from octvideo.cli import main
from octvideo.data.preparation import reencode
from octvideo.data.preparation.encoding import EncodingSettings
from octvideo.data.quarantine import Quarantine
from octvideo.data.shards import read_shards, source_of
from octvideo.inference.stored_features import StoredFeatures
from octvideo.models import i3d_small
from octvideo.parts import Part
from octvideo.stores import StoredFolder
from octvideo.training.checkpoint_block import make_block
from octvideo.video import ViewSettings
from octvideo.video.isolated import Outcome
from tests.file_server import s3_bucket

Fault = Callable[[str, dict[str, Any]], Exception | None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Not by OCTVIDEO_CACHE: the kernel would be compiled anew.
    monkeypatch.setattr(copies, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("octvideo.stores.requests.FIRST_WAIT_SEC", 0.0)
    monkeypatch.setenv("OCTVIDEO_REMOTE_TRIES", "3")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with s3_bucket(monkeypatch) as bucket:
        yield bucket


class Requests:
    """All requests to the bucket, some of which fail as `fault` says of a method and what it is given."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []
        self.fault: Fault = lambda method, given: None


@pytest.fixture
def requests(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> Requests:
    requests, kind = Requests(), type(bucket)
    call = kind._call_s3

    async def watched(self: Any, method: str, *given: Any, **more: Any) -> Any:
        what = {key: value for one in (*given, more) if isinstance(one, dict) for key, value in one.items()}
        requests.made.append((method, str(what.get("Key", ""))))
        if (error := requests.fault(method, what)) is not None:
            raise error
        return await call(self, method, *given, **more)

    monkeypatch.setattr(kind, "_call_s3", watched)
    return requests


def contents(bucket: Any, folder: str) -> dict[str, bytes]:
    """All files below a folder of the bucket, by their names there."""
    return {name.removeprefix(f"{folder}/"): bucket.cat_file(name) for name in bucket.find(folder)}


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class Killed(BaseException):
    """Nothing that follows is done, as after kill -9."""


# ── shards ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A list of nine files of 400 KB, of which an archive takes three."""
    folder = tmp_path / "data"
    folder.mkdir()
    for n in range(9):
        (folder / f"v{n}.mp4").write_bytes(bytes([n]) * 400_000)
    (folder / "list.txt").write_text("".join(f"v{n}.mp4 {n % 2}\n" for n in range(9)))
    (folder / "classes.txt").write_text("sit\nwave\n")
    return folder


SHARDS = ["shards", "list.txt", "--root", "data", "--shard_mb", "1", "-o"]


def test_shards_in_a_bucket_are_those_of_a_disk(
    videos: Path, bucket: Any, requests: Requests, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passing = [OSError(errno.EBUSY, "Please reduce your request rate."), ConnectionResetError("cut")]

    def in_trouble(method: str, given: dict[str, Any]) -> Exception | None:
        return passing.pop() if method == "put_object" and given["Key"].endswith(".tar") and passing else None

    requests.fault = in_trouble
    assert main([*SHARDS, "s3://bucket/train"]) == 0 and passing == []
    said = capsys.readouterr().out
    assert "s3://bucket/train: 9 videos in 3 archives" in said and "--data.train s3://bucket/train\n" in said
    assert main([*SHARDS, "local"]) == 0
    assert contents(bucket, "bucket/train") == files(Path("local"))
    assert not list(cache.rglob("*.tar*"))
    read = [source_of(record).content for record in read_shards("s3://bucket/train")]  # type: ignore[union-attr]
    assert read == [(videos / f"v{n}.mp4").read_bytes() for n in range(9)]
    # Given again, nothing is packed; of other videos, it is refused.
    requests.made.clear()
    assert main([*SHARDS, "s3://bucket/train"]) == 0 and "9 videos (9 of them before)" in capsys.readouterr().out
    assert {key for method, key in requests.made if method == "put_object"} == {
        "train/shards.json",
        "train/left_out.tsv",
    }
    (videos / "list.txt").write_text("v1.mp4 0\n")
    assert main([*SHARDS, "s3://bucket/train"]) == 2
    assert "error: s3://bucket/train holds shards of other videos or settings" in capsys.readouterr().err
    assert contents(bucket, "bucket/train") == files(Path("local"))


@pytest.mark.parametrize(
    "when",
    [
        pytest.param("before the archive", marks=pytest.mark.slow),
        pytest.param("after the archive", marks=pytest.mark.slow),
        "within its rows",
    ],
)
def test_shards_go_on_after_a_kill(
    when: str, videos: Path, bucket: Any, requests: Requests, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        real = copies.StoredCopy.grown

        def killed(self: Any) -> None:
            real(self)
            patch.setattr("octvideo.data.shard_stores.StoredShards." + name, kill)

        def kill(self: Any, shard: Path) -> None:
            if when == "within its rows":
                index = self.here / "index.jsonl"
                index.write_bytes(index.read_bytes()[:-150])
            elif when == "after the archive":
                self._folder.put_new(shard, shard.name)
            raise Killed

        name = "added" if when == "within its rows" else "add"
        patch.setattr(copies.StoredCopy, "grown", killed)  # the first archive is whole
        patch.setattr(copies.StoredCopy, "close", copies.StoredCopy.release)
        with pytest.raises(Killed):
            main([*SHARDS, "s3://bucket/train"])
    assert not bucket.exists("bucket/train/index.jsonl")
    requests.made.clear()
    assert main([*SHARDS, "s3://bucket/train"]) == 0
    put = [key for method, key in requests.made if method == "put_object" and key.endswith(".tar")]
    packed = ["train/shard-000001.tar", "train/shard-000002.tar"]
    assert put == (packed if when == "before the archive" else packed[1:])
    monkeypatch.setattr(copies, "cache_folder", lambda: Path("other cache"))
    assert main([*SHARDS, "local"]) == 0
    assert contents(bucket, "bucket/train") == files(Path("local")) and not list(cache.rglob("*.tar*"))


def test_shards_never_replace_what_others_wrote(
    videos: Path, bucket: Any, requests: Requests, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.pipe_file("bucket/train/notes.txt", b"mine")
    assert main([*SHARDS, "s3://bucket/train"]) == 2
    assert "error: s3://bucket/train is there and holds no shards: give a new folder" in capsys.readouterr().err
    assert contents(bucket, "bucket/train") == {"notes.txt": b"mine"}

    def refused(method: str, given: dict[str, Any]) -> Exception | None:
        return PermissionError("Access Denied") if method == "put_object" and given["Key"].endswith("1.tar") else None

    requests.fault = refused
    assert main([*SHARDS, "s3://bucket/new"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: can't write s3://bucket/new/shard-000001.tar: not allowed: are there credentials")
    assert len(bucket.cat_file("bucket/new/index.jsonl").splitlines()) == 3
    requests.fault = lambda method, given: None
    bucket.pipe_file("bucket/new/shard-000001.tar", b"of another machine")
    assert main([*SHARDS, "s3://bucket/new"]) == 2
    assert "s3://bucket/new/shard-000001.tar is there and was not written by this command" in capsys.readouterr().err
    assert bucket.cat_file("bucket/new/shard-000001.tar") == b"of another machine"
    bucket.rm_file("bucket/new/shard-000000.tar")
    assert main([*SHARDS, "s3://bucket/new"]) == 2
    assert "s3://bucket/new/shard-000000.tar is not there or not whole, and " in capsys.readouterr().err
    # A folder that somebody has removed is begun anew, also by a machine that had written a part of it.
    bucket.rm("bucket/new", recursive=True)
    assert main([*SHARDS, "s3://bucket/new"]) == 0
    assert "s3://bucket/new: 9 videos in 3 archives" in capsys.readouterr().out


@pytest.mark.slow
def test_parts_of_shards_in_a_bucket_are_joined(
    videos: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in ("s3://bucket/train", "local"):
        for part in ("1/2", "2/2"):
            assert main([*SHARDS, out, "--part", part]) == 0
    join = ["join", "s3://bucket/train/part-*", "-o"]
    assert main([*join, "local"]) == 2
    assert "lies outside of local: give the folder around the parts as -o" in capsys.readouterr().err
    assert main(["join", "local/part-1-of-2", "-o", "s3://bucket/train"]) == 2
    assert "local/part-1-of-2 is on this machine, and s3://bucket/train is not" in capsys.readouterr().err
    assert main([*join, "s3://bucket/train"]) == 0
    assert "s3://bucket/train: 9 of 9 videos, in 2 folders" in capsys.readouterr().out
    assert main(["join", "local/part-1-of-2", "local/part-2-of-2", "-o", "local"]) == 0
    assert contents(bucket, "bucket/train") == files(Path("local"))
    assert len(read_shards("s3://bucket/train")) == 9
    assert main([*join, "s3://bucket/train"]) == 0  # its own
    about = json.loads(bucket.cat_file("bucket/train/shards.json"))
    bucket.pipe_file("bucket/train/shards.json", json.dumps({**about, "videos": 8}).encode())
    assert main([*join, "s3://bucket/train"]) == 2
    assert "error: s3://bucket/train holds shards of other videos or settings" in capsys.readouterr().err
    assert main([*join, "s3://bucket/train", "--overwrite"]) == 0
    assert json.loads(bucket.cat_file("bucket/train/shards.json")) == about


def test_a_join_is_whole_where_a_store_lets_nobody_delete(
    videos: Path, bucket: Any, requests: Requests, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("part.jsonl").write_text('{"results": "octvideo infer 1"}\n{"path": "a", "top": []}\n')
    join = ["join", "part.jsonl", "-o", "s3://bucket/all.jsonl"]
    requests.fault = lambda method, given: PermissionError() if method.startswith("delete_object") else None
    assert main(join) == 0
    said = capsys.readouterr()
    assert said.err == (
        "warning: nothing is missing, but s3://bucket/all.jsonl.missing.txt can't be removed: not allowed: "
        "are there credentials for it?\n"
    )
    assert bucket.cat_file("bucket/all.jsonl") == Path("part.jsonl").read_bytes()


# ── features ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    network = i3d_small(num_classes=3, alpha=0.25, width=8)
    path = tmp_path_factory.mktemp("weights") / "last.ckpt"
    views = ViewSettings(clip_frames=4, frame_stride=2, num_clips=1, num_crops=1, short_side_px=32, crop_px=32)
    block = make_block(network, ["a", "b", "c"], views=views, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2))
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": weights, "octvideo": block}, path)
    return path


@pytest.mark.slow
def test_features_in_a_bucket_are_those_of_a_disk(
    tiny_data: Path,
    checkpoint: Path,
    bucket: Any,
    requests: Requests,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clips = sorted(map(str, (tiny_data / "test").rglob("*.mp4")))[:4]
    Path("broken.mp4").write_bytes(b"no video")
    how = ["--ckpt", str(checkpoint), "--engine", "eager", "--precision", "f32", "--device", "cpu", "--window", "0.5"]
    command, out = ["features", *how, "broken.mp4"], "s3://bucket/f"
    assert main([*command, *clips, "-o", "local"]) == 1
    local = {name: content for name, content in files(Path("local")).items() if not name.startswith(".")}
    # Killed after two videos, before the index: given again, two are done, and their rows are known here.
    with monkeypatch.context() as patch:
        patch.setattr(StoredFeatures, "write_index", lambda self, *_, **__: Path("index.csv"))
        assert main([*command, *clips[:2], "-o", out]) == 1
    assert len(contents(bucket, "bucket/f")) == 3
    capsys.readouterr()
    requests.made.clear()
    assert main([*command, *clips, "-o", out]) == 1
    made, said = list(requests.made), capsys.readouterr().err
    assert f"2 of 5 videos are in {out} already" in said and f"features are in {out}, listed in index.csv" in said
    assert contents(bucket, "bucket/f") == local and not list(cache.rglob("*.safetensors*"))
    assert [key for method, key in made if method == "get_object"] == ["f/features.json"]
    assert sum(method == "put_object" for method, _ in made) == 3
    assert not any(key.endswith(".safetensors") for method, key in made if method != "put_object")
    # By another machine, after a kill of this one: what nobody has noted is read of the files.
    bucket.rm_file("bucket/f/index.csv")
    monkeypatch.setattr(copies, "cache_folder", lambda: Path("other"))
    assert main([*command, *clips, "-o", out]) == 1 and contents(bucket, "bucket/f") == local
    assert f"4 of 5 videos are in {out} already" in capsys.readouterr().err
    # Of other settings, or where something else is.
    assert main([*command, *clips, "--stride", "0.1", "-o", out]) == 2
    assert f"error: {out} holds features of other settings (stride_sec: None, now 0.1)" in capsys.readouterr().err
    bucket.pipe_file("bucket/g/x", b"mine")
    assert main([*command, *clips, "-o", "s3://bucket/g"]) == 2
    assert "error: s3://bucket/g holds other files: give another -o" in capsys.readouterr().err
    requests.fault = lambda method, given: (
        PermissionError() if method == "put_object" and given["Key"].endswith(".safetensors") else None
    )
    assert main([*command, clips[0], "-o", "s3://bucket/h"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: can't write s3://bucket/h/_root/") and "not allowed: are there credentials" in said


# ── smaller copies ────────────────────────────────────────────────────────────────────────────────────────────────────


class Here:
    """In place of processes, which are forked from one that knows no bucket: the work, done here."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing."""

    def run(self, items: Any, *_: Any) -> Iterator[tuple[Any, Outcome]]:
        for item in items:
            yield item, Outcome("returned", self._work(item, lambda *_: None))


SMALL = EncodingSettings(short_side_px=16, preset="ultrafast")


def copied(source: Path | str, out: str | Path, **how: Any) -> reencode.Summary:
    pool: dict[str, Any] = {"make_pool": lambda work, *_: Here(work)}
    folder = StoredFolder(out) if isinstance(out, str) else out
    return reencode.reencode(source, folder, SMALL, workers=1, timeout_sec=9, progress=lambda *_: None, **pool, **how)


@pytest.fixture
def clips(tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., Any]) -> Path:
    folder = tmp_path / "clips"
    first = encode(folder / "a b.mkv", moving(3, 32, 48))
    (folder / "sub").mkdir()
    for name in ("b.mp4", "sub/c.mp4"):
        (folder / name).write_bytes(first.read_bytes())
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def test_copies_in_a_bucket_are_those_of_a_disk(
    clips: Path, bucket: Any, requests: Requests, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passing = [OSError(errno.EBUSY, "Please reduce your request rate."), ConnectionResetError("cut")]

    def in_trouble(method: str, given: dict[str, Any]) -> Exception | None:
        if method == "put_object" and given["Key"].endswith("b.mp4"):
            return PermissionError() if "sub" in given["Key"] else passing.pop() if passing else None
        return PermissionError() if method == "put_object" and given["Key"].endswith("c.mp4") else None

    requests.fault = in_trouble
    summary = copied(clips, "s3://bucket/small/")
    assert (summary.done, summary.failed, summary.there) == (2, 2, 0) and passing == []
    assert bucket.cat_file("bucket/small/reencode_failed.txt").decode().splitlines() == [
        "broken.mp4\tInvalid data found when processing input",
        "sub/c.mp4\tcan't write s3://bucket/small/sub/c.mp4: not allowed: are there credentials for it?",
    ]
    copied(clips, Path("local"))
    requests.fault = lambda method, given: None
    bucket.pipe_file("bucket/small/a b.mp4", b"")  # nothing whole
    requests.made.clear()
    summary = copied(clips, "s3://bucket/small", part=Part(1, 1))
    assert (summary.done, summary.failed, summary.there) == (2, 1, 1)
    assert not any(key.endswith("b.mp4") and method != "put_object" for method, key in requests.made)  # one listing
    stored = contents(bucket, "bucket/small")
    local = {name: content for name, content in files(Path("local")).items() if not name.startswith(".")}
    assert stored.pop("reencode_failed-1-of-1.txt") == local["reencode_failed.txt"]
    assert stored.pop("reencode_damaged-1-of-1.txt") == b"" and {*stored} == {*local}
    for name, content in local.items():  # x264 gives other bytes now and then
        assert stored[name] == content or name.endswith(".mp4") or name == "reencode_failed.txt"
    assert not [file for file in cache.rglob("*") if file.suffix in (".mp4", ".part")]
    # Of the source's own store, of other settings, of others.
    words = ["prepare", "reencode", str(clips), "s3://bucket/small"]
    assert main(words) == 2
    assert "s3://bucket/small holds videos of other settings (short_side_px 16, not 256" in capsys.readouterr().err
    for source, out in (("s3://bucket/small", "s3://bucket/small/x"), ("s3://bucket/small/", "s3://bucket")):
        assert main(["prepare", "reencode", source, out]) == 2
        assert f"the folders overlap ({source} and {out})" in capsys.readouterr().err
    bucket.pipe_file("bucket/others/x.mp4", b"mine")
    assert main([*words[:3], "s3://bucket/others"]) == 2
    assert "s3://bucket/others holds videos that this tool did not write" in capsys.readouterr().err
    requests.fault = lambda method, given: PermissionError() if method == "put_object" else None
    assert main([*words[:3], "s3://bucket/closed"]) == 2
    said = "error: can't write s3://bucket/closed/reencode.json: not allowed: are there credentials for it?"
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_here_and_is_gone_on_with(
    bucket: Any, tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., Any]
) -> None:
    """By processes of their own."""
    first = encode(tmp_path / "clips" / "0.mkv", moving(100, 240, 320))
    for n in range(1, 8):
        (tmp_path / "clips" / f"{n}.mkv").write_bytes(first.read_bytes())
    words = ["prepare", "reencode", "clips", "s3://bucket/small", "--short_side", "224", "--num_workers", "1"]
    env = {**os.environ, "OCTVIDEO_CACHE": str(tmp_path / "own")}
    how: dict[str, Any] = {"env": env, "cwd": tmp_path, "text": True, "stderr": subprocess.STDOUT}
    run = subprocess.Popen([sys.executable, "-m", "octvideo", *words], stdout=subprocess.PIPE, **how)
    for _ in range(1200):
        if len(bucket.find("bucket/small")) >= 3:  # the settings and two videos
            break
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.05)
    run.kill()
    run.communicate()
    before = {name: bucket.info(name)["LastModified"] for name in bucket.find("bucket/small") if name.endswith(".mp4")}
    assert 2 <= len(before) < 8
    done = subprocess.run([sys.executable, "-m", "octvideo", *words], stdout=subprocess.PIPE, check=False, **how)
    assert done.returncode == 0 and f"{8 - len(before)} videos encoded, {len(before)} were there" in done.stdout
    assert {name: bucket.info(name)["LastModified"] for name in before} == before
    assert len([name for name in bucket.find("bucket/small") if name.endswith(".mp4")]) == 8
    assert not [file for file in (tmp_path / "own" / "outputs").rglob("*") if file.suffix in (".mp4", ".part")]


# ── journals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_check_into_a_bucket(
    clips: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("octvideo.cli.check.isolated_on_ray", lambda *_: lambda work, *_: Here(work))
    command = ["check", str(clips), "-o"]
    assert main([*command, "s3://bucket/checked"]) == 1
    said = capsys.readouterr().out
    assert "all results: s3://bucket/checked/journal.jsonl\n1 in the quarantine list; " in said
    assert "--data.quarantine s3://bucket/checked/quarantine.txt\n" in said
    assert main([*command, "local"]) == 1
    stored, local = contents(bucket, "bucket/checked"), files(Path("local"))
    assert stored["quarantine.txt"] == local["quarantine.txt"] and {*stored} == {*local}
    assert str(clips / "broken.mp4") in Quarantine("s3://bucket/checked/quarantine.txt", root=clips)
    capsys.readouterr()
    assert main([*command, "s3://bucket/checked"]) == 1
    assert "4 of them were known from before" in capsys.readouterr().out
    assert contents(bucket, "bucket/checked") == stored
    bucket.pipe_file("bucket/checked/quarantine.txt", b"mine")
    assert main([*command, "s3://bucket/checked"]) == 2
    assert "error: s3://bucket/checked/quarantine.txt is there and was not written by" in capsys.readouterr().err
    assert bucket.cat_file("bucket/checked/quarantine.txt") == b"mine"
