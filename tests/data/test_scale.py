"""Data sets of Kinetics' size: lists and the first batch take a minute at most, and 0.4 GB beside the libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from octvideo.class_names import read_class_names

# Runs as a process of its own, since the most memory that a process ever had can't be reset.
# Not ru_maxrss, which starts at what the parent process holds.
PEAK_MIB = """
def peak_mib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) // 1024
"""
FIRST_BATCH = f"""
import sys, time
from octvideo.data.datamodule import VideoDataModule
{PEAK_MIB}
if __name__ == "__main__":
    root, train = sys.argv[1:]
    imported = peak_mib()
    started = time.process_time()
    data = VideoDataModule(root, train=train, classes="kinetics400", num_workers=2, batch_size=2, clip_frames=2)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert len(batch["path"]) == 2, batch["failures"]
    print(len(data.records["train"]), time.process_time() - started)
    print(peak_mib(), imported)
"""


def synthetic_kinetics(root: Path, count: int, video: Path) -> None:
    """A csv of so many videos, in the form and order of the official one, and links to one file for 99 % of them."""
    (root / "annotations").mkdir(parents=True)
    (root / "train").mkdir()
    names = read_class_names("kinetics400")
    with (root / "annotations/train.csv").open("w") as text:
        text.write("label,youtube_id,time_start,time_end,split,is_cc\n")
        for number in range(count):
            text.write(f'"{names[number % 400]}",{number:011d},{number % 300},{number % 300 + 10},train,0\n')
            if number % 100:
                name = f"{number:011d}_{number % 300:06d}_{number % 300 + 10:06d}.mp4"
                (root / "train" / name).symlink_to(video)


def first_batch(root: Path, train: str, repo: Path) -> tuple[int, float, int, int]:
    """Videos, seconds of CPU to the first batch, the most MiB of the process, and MiB that imports alone take."""
    script = root / "first_batch.py"
    script.write_text(FIRST_BATCH)
    command = [sys.executable, str(script), str(root), train]
    env = os.environ | {"PYTHONPATH": str(repo)}
    out = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=280).stdout.split()
    return int(out[0]), float(out[1]), int(out[2]), int(out[3])


def prepare(root: Path, repo: Path) -> str:
    measured = f"""
import time
{PEAK_MIB}
from octvideo.cli import main
started = time.process_time()
assert main(["prepare", "list", "kinetics400", {str(root)!r}]) == 0
print(time.process_time() - started, peak_mib())
"""
    return subprocess.run(
        [sys.executable, "-c", measured], cwd=repo, capture_output=True, text=True, check=True, timeout=280
    ).stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)  # some disks take minutes to delete so many links
def test_240_000_videos(tmp_path: Path, real_videos: Path, repo: Path) -> None:
    clip = real_videos / "clips/k400_arm_wrestling_ehLnj7pXnYE_000027_000037.mp4"
    synthetic_kinetics(tmp_path, 240_000, clip)
    said = prepare(tmp_path, repo)
    seconds, peak_mib = said.splitlines()[-1].split()
    print(f"list: {float(seconds):.0f} s, {peak_mib} MiB")
    assert "2,400 listed videos are not there" in said
    assert float(seconds) < 60 and int(peak_mib) < 1000
    for train in ("annotations/train.csv", "train.txt"):
        count, seconds_, peak, imported = first_batch(tmp_path, train, repo)
        print(f"{train}: {seconds_:.1f} s to the first batch, {peak} MiB, {imported} of these by imports")
        assert count == 237_600 and seconds_ < 60 and peak - imported < 400


def test_lists_and_the_first_batch_of_many(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, encode, moving
) -> None:  # type: ignore[no-untyped-def]
    """As above with fewer, and in this process."""
    from octvideo.cli import main
    from octvideo.data.datamodule import VideoDataModule

    video = encode(tmp_path_factory.mktemp("video") / "a.mp4", moving(6, 24, 32))
    synthetic_kinetics(tmp_path, 3_000, video)
    assert main(["prepare", "list", "kinetics400", str(tmp_path)]) == 0
    assert len((tmp_path / "missing.txt").read_text().splitlines()) == 1 + 30
    records = []
    for train in ("annotations/train.csv", "train.txt", "train"):
        if train == "train":
            (tmp_path / "by class").mkdir()
            (tmp_path / "by class/zumba").symlink_to(tmp_path / "train")
            train = "by class"
        data = VideoDataModule(str(tmp_path), train=train, classes="kinetics400", num_workers=0, batch_size=2)
        data.setup("fit")
        assert len(next(iter(data.train_dataloader()))["path"]) == 2
        records.append(list(data.records["train"]))
    assert records[0] == records[1] and len(records[0]) == len(records[2]) == 2_970
    assert {record.label for record in records[2]} == {399}
