"""Some processes on one machine: the same videos counted once each, and nobody left waiting."""

from __future__ import annotations

import csv
import json
import math
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from octvideo.cli.lightning import run
from octvideo.evaluation.scores import VideoScores

Start = Callable[..., subprocess.CompletedProcess[str]]
TWO = ("--trainer.accelerator", "cpu", "--trainer.devices", 2, "--trainer.strategy", "ddp")
NEIGHBOUR_HAS_ENDED = "error: another process of this run has ended, its own message is above\n"
FIT = ("fit", "-c", "tiny", "--trainer.enable_progress_bar", "false")


def absolute_list(tiny_data: Path, count: int, extra: str = "") -> str:
    lines = (tiny_data / "train.txt").read_text().splitlines()
    return "\n".join([*(str(tiny_data / line) for line in lines[:count]), extra])


def results() -> tuple[dict[str, float], VideoScores]:
    """Of the last test; taken away, so that the next one must write its own."""
    files = Path("runs/tiny/metrics_test.json"), Path("runs/tiny/scores.npz")
    found = json.loads(files[0].read_text()), VideoScores.load(files[1])
    for file in files:
        file.unlink()
    return found


@pytest.mark.parametrize(
    ("processes", "videos", "broken"),
    [
        (2, 2, True),  # three, one of them broken: one process has one more
        pytest.param(4, 3, True, marks=pytest.mark.slow),  # fewer than processes
        pytest.param(2, 5, False, marks=pytest.mark.slow),
        pytest.param(4, 9, True, marks=pytest.mark.slow),
    ],
)
def test_processes_count_what_one_counts(
    processes: int,
    videos: int,
    broken: bool,
    octvideo: Callable[..., tuple[str, str]],
    start: Start,
    trained: Path,
    tiny_data: Path,
) -> None:
    (trained / "broken.mp4").write_bytes(b"no video")
    extra = f"{trained / 'broken.mp4'} 0" if broken else ""
    (trained / "some.txt").write_text(absolute_list(tiny_data, videos, extra))
    words = ("test", "--name", "tiny", "--data.test", trained / "some.txt", "--model.on_unreadable", "count")
    out, _ = octvideo(*words)
    one, one_scores = results()
    ended = start(*words, *TWO, "--trainer.devices", processes, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert f"{videos} videos, 3 classes" in out and f"{videos} videos, 3 classes" in ended.stdout
    two, two_scores = results()
    assert one["videos"] == two["videos"] == len(two_scores) == videos
    assert one["unreadable"] == two["unreadable"] == broken
    for name in ("top1", "top5", "mean_class"):
        assert one[name] == two[name], name
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert one_scores.paths == two_scores.paths
    assert np.array_equal(one_scores.labels, two_scores.labels)
    assert np.array_equal(one_scores.scores, two_scores.scores)


@pytest.mark.slow
def test_two_killed_processes_go_on_to_the_same_weights(start: Start, workplace: Path) -> None:
    """Killed within an epoch, after a checkpoint; resumed with another number of workers."""
    words = (*FIT, *TWO, "--data.batch_size", 1, "--checkpoint_minutes", 0)
    stop = ("--trainer.callbacks", "stop_run.StopRun", "--trainer.callbacks.step", 6)
    ended = start(*words, "--name", "stopped", *stop, "--trainer.callbacks.how", "SIGKILL")
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    ended = start(*words, "--name", "stopped", "--resume", "--data.num_workers", 2)
    assert ended.returncode == 0, ended.stderr
    ended = start(*words, "--name", "whole")
    assert ended.returncode == 0, ended.stderr
    stopped, whole = (
        torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True) for name in ("stopped", "whole")
    )
    assert stopped["global_step"] == whole["global_step"] == 8
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, stopped["state_dict"][key]), key


def noted(file: str, *, epoch: int, steps: range) -> list[int]:
    """Videos that all processes of a run trained on in an epoch, by batches behind so many steps."""
    rows = [list(map(int, line.split())) for part in Path().glob(f"{file}*") for line in part.read_text().splitlines()]
    return sorted(index for row in rows if row[0] == epoch and row[1] in steps for index in row[2:])


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after", "batch"), [(2, 1, 1), (1, 2, 1), (2, 1, 2)])
def test_another_number_of_processes_goes_on_with_the_rest_each_once(
    before: int, after: int, batch: int, start: Start, workplace: Path
) -> None:
    """Nine videos, killed behind 4 of the second epoch."""
    words = (*FIT, *TWO, "--data.batch_size", batch, "--checkpoint_minutes", 0)
    step = {(1, 1): 13, (2, 1): 6, (2, 2): 3}[before, batch]  # an epoch has 9, 4 and 2
    note = "[{class_path: stop_run.NoteVideos, init_args: {file: %s}}%s]"
    stop = f", {{class_path: stop_run.StopRun, init_args: {{step: {step}, how: SIGKILL}}}}"
    ended = start(*words, "--trainer.devices", before, "--trainer.callbacks", note % ("first", stop))
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    ended = start(*words, "--resume", "--trainer.devices", after, "--trainer.callbacks", note % ("second", ""))
    assert ended.returncode == 0, ended.stderr
    first, second = noted("first", epoch=1, steps=range(step)), noted("second", epoch=1, steps=range(step, 99))
    assert len(first) == 4 and len(set(first + second)) == len(first + second) >= 8
    assert "anew" not in ended.stderr


@pytest.mark.slow
def test_two_processes_train_past_a_broken_video(start: Start, workplace: Path, tiny_data: Path) -> None:
    """Batches of one: the process that has the broken video has nothing to compute, and the other waits for it."""
    (workplace / "broken.mp4").write_bytes(b"no video")
    (workplace / "train.txt").write_text(absolute_list(tiny_data, 7, f"{workplace / 'broken.mp4'} 0"))
    words = ("--data.train", workplace / "train.txt", "--data.batch_size", 1, "--model.max_unreadable_fraction", 0.3)
    ended = start(*FIT, *words, *TWO, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert f"1 videos could not be read in training:\n  {workplace / 'broken.mp4'}" in ended.stdout
    assert ended.stdout.count("epoch 2/2") == 1
    with Path("runs/tiny/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["train/unreadable"] for row in rows if row["train/loss"]] == ["1.0", "1.0"]
    assert [row["step"] for row in rows if row["val/top1"]] == ["3", "7"]  # 8 videos are 4 steps of two processes


@pytest.mark.slow
def test_a_broken_video_of_the_second_process_ends_the_test(start: Start, trained: Path, tiny_data: Path) -> None:
    (trained / "broken.mp4").write_bytes(b"no video")
    (trained / "some.txt").write_text(absolute_list(tiny_data, 5, f"{trained / 'broken.mp4'} 0"))
    ended = start("test", "--name", "tiny", "--data.test", trained / "some.txt", *TWO, timeout=120)
    assert ended.returncode != 0 and "Traceback" not in ended.stderr
    assert f"error: cannot read video '{trained / 'broken.mp4'}'" in ended.stderr
    assert not Path("runs/tiny/scores.npz").exists()


@pytest.mark.slow
def test_the_learning_rate_of_processes_ends_with_their_last_step(start: Start, workplace: Path) -> None:
    # 4 batches for each of 2 processes, in windows of 3 and 1: 2 steps in an epoch.
    settings = ("--data.batch_size", 1, "--trainer.accumulate_grad_batches", 3, "--trainer.log_every_n_steps", 1)
    ended = start(*FIT, *TWO, *settings, "--trainer.max_epochs", -1, "--trainer.max_steps", 3, "--model.lr", 0.3)
    assert ended.returncode == 0, ended.stderr
    with Path("runs/tiny/metrics.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]]
    expected = [0.15 * (1 + math.cos(math.pi * step / 3)) for step in range(3)]
    assert sorted(set(rates), reverse=True) == pytest.approx(expected)


@pytest.mark.parametrize(
    "said",
    [
        "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242",
        "[/root/gloo/transport/tcp/pair.cc:598] Read error [127.0.0.1]:4242: Connection reset by peer",
        # Of older NCCL, and of newer: each line by itself.
        "NCCL error in: ProcessGroupNCCL.cpp:3763, remote process exited or there was a network error",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
        "NCCL error in: ProcessGroupNCCL.cpp:1275, internal error\nncclInternalError: Internal check failed.\n"
        "Last error:\nNet : Connection closed by remote peer node<43236>",
        "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE) ran",
        "NCCL communicator was aborted on rank 1.",
    ],
)
def test_what_a_process_says_whose_neighbour_has_ended(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def ended(*args: object) -> None:
        raise torch.distributed.DistBackendError(said)

    assert run(["fit"], ended) == 1
    assert capsys.readouterr().err == NEIGHBOUR_HAS_ENDED


def test_a_process_whose_neighbour_has_ended_says_so(
    octvideo: Callable[..., tuple[str, str]], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*args: object) -> None:
        raise torch.distributed.DistBackendError("NCCL communicator was aborted on rank 1.")

    monkeypatch.setattr("octvideo.training.VideoClassifier.on_fit_start", ended)
    _, err = octvideo(*FIT, code=1)
    assert err.endswith(NEIGHBOUR_HAS_ENDED)


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="its Gloo may never end in destroy_process_group")
@pytest.mark.parametrize("alpha", [0, 0.25])
def test_synchronised_norms_train_past_a_broken_video(
    alpha: float, start: Start, workplace: Path, tiny_data: Path
) -> None:
    """Batches of one: the process that has the broken video takes part in the norms' statistics without a clip."""
    (workplace / "broken.mp4").write_bytes(b"no video")
    (workplace / "train.txt").write_text(absolute_list(tiny_data, 7, f"{workplace / 'broken.mp4'} 0"))
    words = ("--data.train", workplace / "train.txt", "--data.batch_size", 1, "--model.max_unreadable_fraction", 0.3)
    network = ("--model.network.init_args.alpha", alpha, "--trainer.sync_batchnorm", "true")
    ended = start(*FIT, *words, *network, *TWO, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert "1 videos could not be read in training" in ended.stdout
