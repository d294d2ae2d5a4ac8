"""tools/compare_arms.py as the user runs it: mistakes in one line; a comparison from nothing to the table."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the tool as __main__ in this process; returns its exit code, stdout and stderr."""

    def run_tool(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["compare_arms.py", *args])
        monkeypatch.setattr(sys, "path", list(sys.path))
        capsys.readouterr()
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(repo / "tools" / "compare_arms.py"), run_name="__main__")
        signal.signal(signal.SIGTERM, before)
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run_tool


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--networks", "i3d"], "no network 'i3d': there are c2d_r50, c2d_small, "),
        (["--networks", "timm:i3d"], "timm has no network 'i3d'"),
        (["--networks", "i3d_small"], "--cfg not given: trainings start from a config, such as --cfg jhmdb"),
        (["--networks", "i3d_small", "--only_table"], "no tested run in runs: looked for arms_i3d_small_ordinary_s0, "),
        (["--networks", "i3d_small", "--seeds", "1", "1"], "seeds: got 1 1, expected different numbers, 0 or more"),
    ],
)
def test_mistakes_are_one_line(args: list[str], message: str, run: Run, workplace: Path) -> None:
    code, out, err = run(*args)
    assert code == 2 and not out
    assert err.startswith(f"error: {message}") and len(err.splitlines()) == 1, err
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_comparison_from_nothing_to_the_table(repo: Path, workplace: Path, run: Run) -> None:
    tool = [sys.executable, str(repo / "tools" / "compare_arms.py"), "--cfg", "tiny", "--networks", "i3d_small"]
    words = [*tool, "--epochs", "1", "--num_clips", "1", "--rounds", "1", "--markdown"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    options = ["--", "--trainer.enable_progress_bar", "false", "--model.lr", "0.02"]

    def compare(*more: str, code: int = 0) -> tuple[list[str], str]:
        done = subprocess.run([*words, *more], env=env, text=True, capture_output=True, timeout=900, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout.splitlines(), done.stderr

    lines, err = compare(*options)
    assert [line.split(" | ")[:2] for line in lines[2:5]] == [
        ["| i3d_small", arm] for arm in ("ordinary", "ordinary + pool", "octave, alpha 0.25")
    ]
    assert "i3d_small: 1 epochs, clips of 3x4x32x32, batches of 3, tested on 5 videos with 1 x 3 views" in lines
    assert not [line for line in lines if line.startswith("Not tested yet")] and "failed" not in err
    config = Path("runs/arms_i3d_small_pool_s0/config.yaml").read_text()
    # The config's width and the command line's rate, beside the arm's own arguments.
    assert "width: 8" in config and "lr: 0.02" in config and "downsample: pool" in config and "alpha: 0.0" in config

    # A run that was trained and not tested is not trained again, and one that can't go on is named.
    octave, pool = Path("runs/arms_i3d_small_oct_s0"), Path("runs/arms_i3d_small_pool_s0")
    for folder in (octave, pool):
        (folder / "scores.npz").unlink()
    (pool / "checkpoints" / "last.ckpt").write_text("cut off")
    (pool / "checkpoints" / "best.ckpt").unlink()
    before = torch.load(octave / "checkpoints" / "last.ckpt", weights_only=True)
    lines, err = compare(*options, code=1)
    assert "arms_i3d_small_ordinary_s0: finished, kept" in err
    assert "arms_i3d_small_pool_s0: train failed with exit code 2; the end of runs/arms_i3d_small_pool_s0.log:" in err
    assert "can't be read as a checkpoint" in err and "1 of 3 runs failed: arms_i3d_small_pool_s0" in err
    assert lines[-1] == "Not tested yet: i3d_small pool s0"
    after = torch.load(octave / "checkpoints" / "last.ckpt", weights_only=True)
    assert after["global_step"] == before["global_step"] == 3
    assert all(torch.equal(after["state_dict"][key], value) for key, value in before["state_dict"].items())
