"""The runs of a comparison: each network as ordinary, ordinary with pooling, and octave, at several seeds.

Runs are trained and tested by the command line that users have, one after another, each in its own process and
folder (arms_NETWORK_ARM_sSEED). Finished runs are kept and interrupted ones are resumed, so the same command can be
given again until all is there.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

import octvideo.models as models
from octvideo.errors import UserError
from octvideo.training.run_folder import RunFolder

Arm = Literal["ordinary", "pool", "oct"]
ARMS: tuple[Arm, ...] = ("ordinary", "pool", "oct")
# A command and the log that its output is added to, to the command's exit code.
Runner = Callable[[list[str], Path], int]
# How long a command that we stop may take to end by itself, and after SIGTERM.
PATIENCE_SEC = (5.0, 30.0)


@dataclass(frozen=True)
class ArmNetwork:
    """A network to compare the arms of.

    Args:
        short: its name in run folders and tables.
        class_path: of its builder.
        image_network: what runs on each frame, of a frame network.
    """

    short: str
    class_path: str
    image_network: str | None = None


@dataclass(frozen=True)
class ArmRun:
    """One training: a network, an arm, a seed; `alpha` is that of the octave arm."""

    network: ArmNetwork
    arm: Arm
    seed: int
    alpha: float

    @property
    def name(self) -> str:
        return f"arms_{self.network.short}_{self.arm}_s{self.seed}"

    @property
    def init_args(self) -> dict[str, Any]:
        """What makes the arm, as the builder's arguments; all others are the config's."""
        own = {"network": self.network.image_network} if self.network.image_network else {}
        alpha, downsample = self.alpha if self.arm == "oct" else 0.0, "stride" if self.arm == "ordinary" else "pool"
        return {**own, "alpha": alpha, "downsample": downsample}


@dataclass(frozen=True)
class ArmSettings:
    """What all runs of a comparison share.

    Args:
        cfg: config by path or name; None where nothing is to be trained.
        runs_dir: folder of all runs.
        tools: folder with train.py and test.py.
        epochs: of each training; None is the config's.
        num_clips: of each test video; None is the config's.
        options: more words for train.py.
    """

    cfg: str | None
    runs_dir: Path
    tools: Path
    epochs: int | None = None
    num_clips: int | None = None
    options: tuple[str, ...] = field(default=())


def parse_network(text: str) -> ArmNetwork:
    """`octvideo.models.i3d_small` (or `i3d_small`), or `timm:NAME`, `torchvision:NAME` on every frame.

    Raises:
        UserError: no such builder.
    """
    _, colon, name = text.partition(":")
    if colon:
        return ArmNetwork(name, "octvideo.models.frame_network", text)
    builder = text.removeprefix("octvideo.models.")
    if builder not in models.__all__ or builder == "frame_network":
        known = ", ".join(name for name in models.__all__ if name != "frame_network")
        raise UserError(f"no network {text!r}: there are {known} of octvideo.models, and torchvision:NAME, timm:NAME")
    return ArmNetwork(builder, f"octvideo.models.{builder}")


def plan_runs(networks: Sequence[str], seeds: Sequence[int], *, alpha: float) -> list[ArmRun]:
    """All runs in the order to train them: all networks and arms of the first seed first.

    Args:
        networks: as `parse_network` takes them.
        seeds: of the trainings.
        alpha: low share of the octave arm.

    Raises:
        UserError: no such network, two of one name, a seed twice or below 0, or an alpha that makes no octave arm.
    """
    parsed = [parse_network(text) for text in networks]
    shorts = [network.short for network in parsed]
    if twice := sorted({short for short in shorts if shorts.count(short) > 1}):
        raise UserError(f"networks: {twice[0]} is given twice, and both would train in the same run folders")
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"seeds: got {' '.join(map(str, seeds))}, expected different numbers, 0 or more")
    if not 0.0 < alpha <= 1.0:
        raise UserError(
            f"alpha: got {alpha:g}, expected the octave arm's share of low-frequency channels, above 0 to 1"
        )
    return [ArmRun(network, arm, seed, alpha) for seed in seeds for network in parsed for arm in ARMS]


def train_runs(runs: Iterable[ArmRun], settings: ArmSettings, *, runner: Runner, say: Callable[[str], None]) -> bool:
    """Trains and tests the runs that are not finished; a run that fails is named, and the others follow.

    Args:
        runs: to have.
        settings: of all.
        runner: runs a command.
        say: tells the user one message.

    Returns:
        Whether all are finished.

    Raises:
        UserError: a run that is there is another than the one asked for.
    """
    runs = list(runs)
    for run in runs:
        read_config(run, settings)
    failed = []
    for run in runs:
        folder, log = settings.runs_dir / run.name, settings.runs_dir / f"{run.name}.log"
        if (folder / "scores.npz").is_file():
            say(f"{run.name}: finished, kept")
            continue
        log.parent.mkdir(parents=True, exist_ok=True)
        for command in (command_to_train(run, settings), command_to_test(run, settings)):
            what = Path(command[1]).stem
            resumed = " (goes on with the interrupted run)" if "--resume" in command else ""
            say(f"{run.name}: {what}{resumed}, log {log}")
            if code := runner(command, log):
                say(f"{run.name}: {what} failed with exit code {code}; the end of {log}:\n{last_lines(log)}")
                failed.append(run.name)
                break
    if failed:
        say(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}. Given again, the command tries them again")
    return not failed


def command_to_train(run: ArmRun, settings: ArmSettings) -> list[str]:
    """The command that trains a run, or resumes it where it has a checkpoint."""
    options = {"--seed_everything": run.seed}
    if settings.epochs is not None:
        options["--trainer.max_epochs"] = settings.epochs
    words = [word for option, value in options.items() for word in (option, str(value))]
    # The builder first: it takes the config's arguments that it has, and then ours.
    words += ["--model.network", run.network.class_path]
    for key, value in run.init_args.items():
        words += [f"--model.network.init_args.{key}", str(value)]
    words += [*settings.options, "--name", run.name, "--runs_dir", str(settings.runs_dir)]
    if RunFolder(settings.runs_dir / run.name).last.exists():
        words.append("--resume")
    return [sys.executable, str(settings.tools / "train.py"), "--cfg", str(settings.cfg), *words]


def command_to_test(run: ArmRun, settings: ArmSettings) -> list[str]:
    """The command that tests a trained run, with the config that it was trained with."""
    clips = [] if settings.num_clips is None else ["--data.num_clips", str(settings.num_clips)]
    words = ["--name", run.name, "--runs_dir", str(settings.runs_dir), *clips]
    return [sys.executable, str(settings.tools / "test.py"), *words]


def run_in_process(command: list[str], log: Path) -> int:
    """Runs a command with its output added to `log`; it never outlives us.

    Returns:
        Its exit code.
    """
    with log.open("a", encoding="utf-8") as file:
        print("$", shlex.join(command), file=file, flush=True)
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            return process.wait()
        except BaseException:  # Ctrl-C too, which a terminal gives the process as well: it may be ending by itself
            _stop(process)
            raise


def _stop(process: subprocess.Popen[bytes]) -> None:
    for patience_sec, harder in zip(PATIENCE_SEC, (process.terminate, process.kill), strict=True):
        try:
            process.wait(patience_sec)
            return
        except subprocess.TimeoutExpired:
            harder()
    process.wait()


def last_lines(log: Path) -> str:
    """The end of a log, indented."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return "\n".join(f"    {line}" for line in [line for line in lines if line.strip()][-5:])


def read_config(run: ArmRun, settings: ArmSettings) -> dict[str, Any] | None:
    """The config that a run was trained with, or None where nothing has been trained.

    Raises:
        UserError: the run in the folder is another than the one asked for.
    """
    folder = settings.runs_dir / run.name
    if not (folder / "config.yaml").is_file():
        return None
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    network = config["model"]["network"]
    asked: dict[str, Any] = {"seed": run.seed, "network": run.network.class_path, **run.init_args}
    own = {key: network["init_args"].get(key) for key in run.init_args}
    # An image network is a network too: the builder and its argument have one name.
    got = {"seed": config["seed_everything"], "network": network["class_path"], **own}
    if settings.epochs is not None:
        asked["epochs"], got["epochs"] = settings.epochs, config["trainer"]["max_epochs"]
    for key, value in asked.items():
        if got[key] != value:
            raise UserError(
                f"{folder} was trained with {key} {got[key]}, asked for is {value}: ask for what is there, or give "
                "another --runs_dir"
            )
    return config
