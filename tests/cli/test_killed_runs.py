"""A run that is killed at a random moment goes on to the weights of one that was not, bit for bit, every time."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

KILLS = 20
WORDS = "--trainer.accumulate_grad_batches 2 --trainer.max_epochs 3 --data.batch_size 1 --checkpoint_minutes 0.0002"


def train(repo: Path, name: str, *words: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        str(repo / "tools" / "train.py"),
        "--cfg",
        "tiny",
        "--name",
        name,
        *WORDS.split(),
        *words,
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    log = Path(f"{name}.log").open("a", encoding="utf-8")  # noqa: SIM115 (the process has it)
    return subprocess.Popen([*command, "--trainer.enable_progress_bar", "false"], env=env, stdout=log, stderr=log)


def last(name: str) -> Path:
    return Path("runs", name, "checkpoints", "last.ckpt")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills_at_random_moments_cost_no_bit(workplace: Path, repo: Path) -> None:
    """Nine videos in batches of one: 4 windows of two and one of one in each of three epochs."""
    assert train(repo, "whole").wait() == 0
    whole = torch.load(last("whole"), weights_only=True)
    assert whole["global_step"] == 15
    dice, found = random.Random(0), []
    seconds = last("whole").stat().st_mtime - Path("runs/whole/config.yaml").stat().st_mtime  # of the training itself
    for kill in range(KILLS):
        name = f"killed{kill}"
        process = train(repo, name)
        while not last(name).exists():  # there is nothing to resume before
            assert process.poll() is None, Path(f"{name}.log").read_text()
            time.sleep(0.01)
        time.sleep(dice.uniform(0, seconds))
        process.kill()
        ended = process.wait()
        state = torch.load(last(name), weights_only=True)
        assert train(repo, name, "--resume").wait() == 0, Path(f"{name}.log").read_text()
        resumed = torch.load(last(name), weights_only=True)
        equal = all(torch.equal(value, resumed["state_dict"][key]) for key, value in whole["state_dict"].items())
        found.append((ended, state["global_step"], resumed["global_step"], equal))
        print(f"kill {kill}: exit code {ended}, resumed from step {state['global_step']}, equal: {equal}", flush=True)
    assert all(equal and steps == 15 for _, _, steps, equal in found), found
    # Most kills came before the end, and at different places.
    assert sum(ended == -signal.SIGKILL for ended, *_ in found) > KILLS / 2
    assert len({step for _, step, _, _ in found}) >= 5
