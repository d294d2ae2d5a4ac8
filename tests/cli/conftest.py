"""A data set small enough to train on in a test (three classes of moving bars, H.264), and ways to run the commands."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import octvideo.cli.lightning  # now: Lightning's logger keeps the stderr of when it is imported
from octvideo.cli import main

Cli = Callable[..., tuple[str, str]]
Start = Callable[..., subprocess.CompletedProcess[str]]
CLASSES = ("down", "left", "right")


def write_video(path: Path, motion: str, seed: int) -> None:
    """20 frames of a bright bar that moves one way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 60, (48, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20, width=64, height=48, pix_fmt="yuv420p")
        for t in range(20):
            image = noise.copy()
            if motion == "down":
                image[2 * t : 2 * t + 8] = 200
            else:
                x = 2 * t if motion == "right" else 54 - 2 * t
                image[:, x : x + 8] = 200
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train/<class>/*.mp4 (9 videos), test/<class>/*.mp4 (5), lists train.txt, test.txt, classes.txt."""
    root = tmp_path_factory.mktemp("tiny data")  # a path with a space, as users have
    for split, count in (("train", 9), ("test", 5)):
        lines = []
        for i in range(count):
            label = i % len(CLASSES)
            file = Path(split) / CLASSES[label] / f"clip {i}.mp4"
            write_video(root / file, CLASSES[label], seed=i + 100 * (split == "test"))
            lines.append(f"{file} {label}")
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


TINY_CONFIG = """\
# A network that trains in a second on the tiny data.
model:
  network:
    class_path: octvideo.models.i3d_small
    init_args: {{alpha: 0.25, width: 8}}
  lr: 0.01
data:
  root: "{root}"
  train: train.txt
  val: test.txt
  clip_frames: 4
  frame_stride: 2
  augment: {{crop_px: 32, short_side_px: [32, 40], flip: 0.0}}
  num_clips: 2
  short_side_px: 32
  crop_px: 32
  batch_size: 3
  num_workers: 0
trainer:
  max_epochs: 2
  accelerator: cpu
  devices: 1
"""


@pytest.fixture(scope="session")
def tiny_config(tiny_data: Path) -> str:
    """The content of tiny.yaml."""
    return TINY_CONFIG.format(root=tiny_data)


@pytest.fixture
def workplace(tiny_config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with tiny.yaml."""
    (tmp_path / "tiny.yaml").write_text(tiny_config)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def trained_once(tiny_config: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/tiny, as `octvideo fit -c tiny` leaves it: for tests of what comes after training."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(tiny_config)
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.chdir(folder)
        assert main(["fit", "-c", "tiny", "--trainer.enable_progress_bar", "false"]) == 0
    return folder


@pytest.fixture
def trained(trained_once: Path, workplace: Path) -> Path:
    """A folder to work in, with tiny.yaml and its trained run."""
    shutil.copytree(trained_once / "runs", workplace / "runs")
    return workplace


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """As in the processes of `start`, so that weights can be compared bit by bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def octvideo(capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Runs the command line in this process: `out, err = octvideo("fit", "-c", "tiny", code=0)`."""

    def run(*words: object, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        got = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert got == code, f"exit code {got}\n{out}\n{err}"
        return out, err

    with one_thread():
        yield run


@pytest.fixture(scope="session")
def start() -> Start:
    """Runs the command line in a process of its own, in the current folder or another one."""

    def run(*words: object, timeout: float = 240, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        here = Path(__file__).parent  # StopRun is there; and this checkout is meant, whatever is installed
        path = os.pathsep.join([str(here), str(here.parents[1])])
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "octvideo", *map(str, words)]
        return subprocess.run(
            command,
            cwd=cwd,
            env=env,
            text=True,
            capture_output=True,
            timeout=timeout,
            check=False,
            # A shell's background jobs ignore Ctrl-C, and so do their children: these tests may run in one.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return run
