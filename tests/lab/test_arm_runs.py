"""The runs of a comparison: what is trained, by which commands, what is kept, and what a failure leaves."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lab.arms import runs as arm_runs
from lab.arms.runs import (
    ArmRun,
    ArmSettings,
    command_to_test,
    command_to_train,
    parse_network,
    plan_runs,
    read_config,
    run_in_process,
    train_runs,
)
from octvideo.errors import UserError

I3D = "octvideo.models.i3d_small"
FRAMES = "timm:mobilenetv2_050"


@pytest.fixture
def settings(tmp_path: Path) -> ArmSettings:
    return ArmSettings("jhmdb", tmp_path / "runs", Path("tools"), epochs=12, num_clips=3)


def trained(run: ArmRun, settings: ArmSettings, *, epochs: int = 12, tested: bool = False) -> None:
    """What a training leaves behind, without the training."""
    folder = settings.runs_dir / run.name
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    network = {"class_path": run.network.class_path, "init_args": {"num_classes": 21, **run.init_args}}
    config = {"seed_everything": run.seed, "model": {"network": network}, "trainer": {"max_epochs": epochs}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if tested:
        (folder / "scores.npz").touch()


class FakeCommands:
    """Does what train.py and test.py leave, in no time; fails where told to."""

    def __init__(self, runs: list[ArmRun], settings: ArmSettings, fails: tuple[str, str] = ("", "")) -> None:
        self.runs = {run.name: run for run in runs}
        self.settings, self.fails = settings, fails
        self.calls: list[tuple[str, str]] = []

    def __call__(self, command: list[str], log: Path) -> int:
        tool, name = Path(command[1]).stem, command[command.index("--name") + 1]
        self.calls.append((tool, name))
        with log.open("a") as file:
            file.write("".join(f"{tool} line {n}\n\n" for n in range(9)))
        if (tool, name) == self.fails:
            return 2
        trained(self.runs[name], self.settings, tested=tool == "test")
        return 0


# ── what is trained ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_plan_has_each_network_as_each_arm_at_each_seed() -> None:
    runs = plan_runs([I3D, FRAMES], [0, 2], alpha=0.25)
    assert [run.name for run in runs[:6]] == [
        f"arms_{network}_{arm}_s0"
        for network in ("i3d_small", "mobilenetv2_050")
        for arm in ("ordinary", "pool", "oct")
    ]
    assert [run.seed for run in runs] == [0] * 6 + [2] * 6 and len({run.name for run in runs}) == 12
    assert [run.init_args for run in runs[:3]] == [
        {"alpha": 0.0, "downsample": "stride"},
        {"alpha": 0.0, "downsample": "pool"},
        {"alpha": 0.25, "downsample": "pool"},
    ]
    assert runs[5].init_args == {"network": FRAMES, "alpha": 0.25, "downsample": "pool"}
    assert parse_network("i3d_small") == parse_network(I3D)


@pytest.mark.parametrize(
    ("networks", "seeds", "alpha", "message"),
    [
        (["octvideo.models.i3d_tiny"], [0], 0.25, r"no network 'octvideo.models.i3d_tiny': there are c2d_r50, .*timm:"),
        (["octvideo.models.frame_network"], [0], 0.25, "no network 'octvideo.models.frame_network'"),
        (["timm:resnet18", "torchvision:resnet18"], [0], 0.25, "networks: resnet18 is given twice"),
        ([I3D], [1, 1], 0.25, "seeds: got 1 1, expected different numbers, 0 or more"),
        ([I3D], [-1], 0.25, "seeds: got -1, expected"),
        ([I3D], [0], 0.0, "alpha: got 0, expected the octave arm's share of low-frequency channels, above 0 to 1"),
        ([I3D], [0], 1.5, "alpha: got 1.5"),
    ],
)
def test_plans_that_make_no_comparison(networks: list[str], seeds: list[int], alpha: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_runs(networks, seeds, alpha=alpha)


def test_commands_are_those_of_a_user(settings: ArmSettings) -> None:
    run = plan_runs([FRAMES], [3], alpha=0.25)[2]
    network = "--model.network.init_args"
    name = ["--name", "arms_mobilenetv2_050_oct_s3", "--runs_dir", str(settings.runs_dir)]
    train = [sys.executable, "tools/train.py", "--cfg", "jhmdb", "--seed_everything", "3", "--trainer.max_epochs", "12"]
    train += ["--model.network", "octvideo.models.frame_network", f"{network}.network", FRAMES]
    train += [f"{network}.alpha", "0.25", f"{network}.downsample", "pool", *name]
    assert command_to_train(run, settings) == train
    assert command_to_test(run, settings) == [sys.executable, "tools/test.py", *name, "--data.num_clips", "3"]
    trained(run, settings)
    assert command_to_train(run, settings) == [*train, "--resume"]
    # What is not given is the config's.
    plain = ArmSettings("jhmdb", settings.runs_dir, Path("tools"), options=("--model.lr", "0.1"))
    assert "--trainer.max_epochs" not in command_to_train(run, plain)
    assert command_to_train(run, plain)[-7:-5] == ["--model.lr", "0.1"]
    assert command_to_test(run, plain)[-1] == str(settings.runs_dir)


# ── training them ───────────────────────────────────────────────────────────────────────────────────────────


def test_finished_runs_are_kept_and_interrupted_ones_go_on(settings: ArmSettings) -> None:
    runs = plan_runs([I3D], [0], alpha=0.25)
    ordinary, pool, octave = (run.name for run in runs)
    trained(runs[0], settings, tested=True)
    trained(runs[1], settings)
    said: list[str] = []
    commands = FakeCommands(runs, settings)
    assert train_runs(runs, settings, runner=commands, say=said.append)
    assert commands.calls == [("train", pool), ("test", pool), ("train", octave), ("test", octave)]
    assert said[0] == f"{ordinary}: finished, kept"
    assert said[1] == f"{pool}: train (goes on with the interrupted run), log {settings.runs_dir / pool}.log"
    assert "goes on" not in said[3]
    again = FakeCommands(runs, settings)
    assert train_runs(runs, settings, runner=again, say=said.append) and again.calls == []


@pytest.mark.parametrize("tool", ["train", "test"])
def test_a_failure_is_told_with_the_end_of_its_log_and_the_rest_goes_on(settings: ArmSettings, tool: str) -> None:
    runs = plan_runs([I3D], [0], alpha=0.25)
    said: list[str] = []
    commands = FakeCommands(runs, settings, fails=(tool, runs[1].name))
    assert not train_runs(runs, settings, runner=commands, say=said.append)
    [failure] = [text for text in said if "exit code" in text]
    assert failure.startswith(f"{runs[1].name}: {tool} failed with exit code 2; the end of {settings.runs_dir}")
    assert failure.splitlines()[1:] == [f"    {tool} line {n}" for n in range(4, 9)]
    assert said[-1].startswith(f"1 of 3 runs failed: {runs[1].name}. ")
    assert ("test", runs[1].name) in commands.calls or tool == "train"
    assert commands.calls[-1] == ("test", runs[2].name)


def test_a_run_that_is_another_is_found_before_anything_is_trained(settings: ArmSettings) -> None:
    runs = plan_runs([I3D], [0], alpha=0.25)
    other = plan_runs([I3D], [0], alpha=0.5)[2]
    trained(other, settings)
    commands = FakeCommands(runs, settings)
    with pytest.raises(
        UserError, match=r"arms_i3d_small_oct_s0 was trained with alpha 0.5, asked for is 0.25: ask for"
    ):
        train_runs(runs, settings, runner=commands, say=lambda text: None)
    assert commands.calls == []
    trained(runs[2], settings, epochs=30)
    with pytest.raises(UserError, match="was trained with epochs 30, asked for is 12"):
        read_config(runs[2], settings)
    free = ArmSettings(None, settings.runs_dir, settings.tools)
    assert read_config(runs[2], free) is not None and read_config(runs[0], free) is None


# ── processes ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_process_leaves_its_command_output_and_exit_code(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    program = "import sys; print('out'); sys.stdout.flush(); print('err', file=sys.stderr); sys.exit(3)"
    for _ in range(2):
        assert run_in_process([sys.executable, "-c", program], log) == 3
    lines = log.read_text().splitlines()
    assert lines[1:3] == lines[4:6] == ["out", "err"]
    assert lines[0].startswith(f"$ {sys.executable} -c 'import sys")


@pytest.fixture
def ctrl_c_after() -> Callable[[Path], None]:
    """Sends this process Ctrl-C once a file is there."""

    def wait(file: Path) -> None:
        while not file.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    return lambda file: threading.Thread(target=wait, args=(file,), daemon=True).start()


def test_ctrl_c_ends_the_process_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ctrl_c_after: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(arm_runs, "PATIENCE_SEC", (0.2, 0.2))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's is ignored
    started = tmp_path / "pid"
    # It ignores SIGTERM as well, so it must be killed.
    program = "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); p = sys.argv[1]; "
    program += "open(p + '.part', 'w').write(str(os.getpid())); os.rename(p + '.part', p); time.sleep(60)"
    try:
        ctrl_c_after(started)
        with pytest.raises(KeyboardInterrupt):
            run_in_process([sys.executable, "-c", program, str(started)], tmp_path / "a.log")
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
