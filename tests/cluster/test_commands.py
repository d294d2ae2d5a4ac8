"""`--on ray` on a cluster of two nodes: the commands write what they write on one machine, whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from octvideo.data.shards import read_shards, source_of
from octvideo.models import i3d_small
from octvideo.training.checkpoint_block import make_block
from octvideo.video import ViewSettings
from tests.cluster.conftest import actors_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
VIEWS = ViewSettings(clip_frames=8, frame_stride=1, num_clips=2, num_crops=3, short_side_px=96, crop_px=96)
NUM_VIDEOS = 60


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, encode: Callable[..., Path], moving: Callable[..., Tensor]
) -> Iterator[Path]:
    """A folder with weights, 60 videos, of which a fifth is broken in three ways, and a list of them."""
    pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("cluster")
    torch.manual_seed(1)
    network = i3d_small(num_classes=3, alpha=0.25)
    block = make_block(network, ["a", "b", "c"], views=VIEWS, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2))
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": weights, "octvideo": block}, folder / "last.ckpt")
    whole = encode(folder / "whole.mp4", moving(24, 96, 128)).read_bytes()
    (folder / "videos").mkdir()
    for n in range(NUM_VIDEOS):
        content = whole
        if n % 5 == 3:
            content = (b"", whole[: len(whole) // 2], b"not a video" * 100)[n // 5 % 3]
        (folder / "videos" / f"v{n}.mp4").write_bytes(content)
    (folder / "names.txt").write_text("".join(f"videos/v{n}.mp4\n" for n in range(NUM_VIDEOS)))
    yield folder


def words(command: str, out: str) -> list[str]:
    """A command on the list of `place`."""
    if command == "check":
        return ["check", "videos", "-o", out]
    if command == "reencode":
        return ["prepare", "reencode", "videos", out, "--short_side", "32"]
    how = ["--ckpt", "last.ckpt", "--engine", "eager", "--precision", "f32", "--device", "cpu"]
    return [command, "@names.txt", *how, "-o", out]


def start(place: Path, given: list[str]) -> subprocess.Popen[str]:
    """`octvideo` with these words, in `place`."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-m", "octvideo", *given], cwd=place, env=env, **how)


def lines(file: Path) -> list[str]:
    """Sorted, without times, which differ from run to run."""
    read = [json.loads(line) for line in file.read_text().splitlines()]
    return sorted(json.dumps({key: line[key] for key in line if key != "seconds"}) for line in read)


def wait_for(file: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until a file has so many lines."""
    for _ in range(2000):
        if file.exists() and len(file.read_bytes().splitlines()) >= count:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError(f"{file} does not grow")


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def test_infer_is_as_on_one_machine_whatever_is_killed(cluster: Any, place: Path) -> None:
    code, said = end_of(start(place, words("infer", "one.jsonl")))
    assert code == 1, said
    one = lines(place / "one.jsonl")
    assert len(one) == NUM_VIDEOS + 1 and sum('"reason"' in line for line in one) == NUM_VIDEOS // 5
    given = [*words("infer", "ray.jsonl"), "--on", f"ray://{cluster.address}"]
    out = place / "ray.jsonl"

    driver = start(place, given)
    wait_for(out, 5, driver)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    before = lines(out)
    assert 5 <= len(before) < len(one)

    driver = start(place, given)
    wait_for(out, len(before) + 5, driver)
    first, second = cluster.worker_nodes
    killed = actors_of(first)
    assert killed
    for process in killed:
        process.kill()
    wait_for(out, len(before) + 15, driver)
    psutil.Process(second.all_processes["raylet"][0].process.pid).kill()
    code, said = end_of(driver)
    assert code == 1, said
    assert lines(out) == one  # each once
    assert f"{len(before) - 1} of {NUM_VIDEOS} videos are in ray.jsonl already" in said


def test_shards_hold_what_one_machine_writes(cluster: Any, place: Path) -> None:
    whole = place / "videos" / "v0.mp4"
    (place / "large").mkdir()
    for n in range(12):  # 0.5 MB each: the list is worth two parts
        (place / "large" / f"{n}.mp4").write_bytes(whole.read_bytes() + bytes([n]) * 2**19)
    (place / "shards.txt").write_text("".join(f"large/{n}.mp4 {n % 3}\n" for n in range(12)) + "large/none.mp4 0\n")
    (place / "classes.txt").write_text("a\nb\nc\n")
    given = ["shards", "shards.txt", "--shard_mb", "1"]
    assert end_of(start(place, [*given, "-o", "one shards"]))[0] == 1
    code, said = end_of(start(place, [*given, "-o", "ray shards", "--on", f"ray://{cluster.address}"]))
    assert code == 1 and "12 videos in 2 folders\n1 left out, the first large/none.mp4" in said, said
    one, two = (list(read_shards(str(place / name))) for name in ("one shards", "ray shards"))
    assert [(video.path, video.label) for video in one] == [(video.path, video.label) for video in two]
    for video, other in zip(one, two, strict=True):
        assert source_of(video).content == source_of(other).content  # type: ignore[union-attr]


@pytest.mark.parametrize("command", ["timeline", "features", "check", "reencode"])
def test_commands_are_as_on_one_machine(command: str, cluster: Any, place: Path) -> None:
    code, said = end_of(start(place, words(command, f"one {command}")))
    assert code == 1, said
    given = [*words(command, f"ray {command}"), "--on", f"ray://{cluster.address}"]
    code, said = end_of(start(place, given))
    assert code == 1, said
    one, two = place / f"one {command}", place / f"ray {command}"
    if command == "timeline":
        assert lines(one) == lines(two) and len(lines(one)) > NUM_VIDEOS
    elif command == "check":
        assert lines(one / "journal.jsonl") == lines(two / "journal.jsonl")
        assert (one / "quarantine.txt").read_text() == (two / "quarantine.txt").read_text()
    elif command == "reencode":  # x264 gives other bytes now and then, on one machine too
        for name in ("reencode_failed.txt", "reencode_damaged.txt"):
            texts = [sorted((folder / name).read_text().splitlines()) for folder in (one, two)]
            assert texts[0] == texts[1]
        names = [sorted(file.name for file in folder.glob("*.mp4")) for folder in (one, two)]
        assert names[0] == names[1] and len(names[0]) >= NUM_VIDEOS * 4 // 5
    else:
        files = [
            {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.*") if file.suffix != ".lock"}
            for folder in (one, two)
        ]
        assert files[0] == files[1] and len(files[0]) > NUM_VIDEOS // 2
