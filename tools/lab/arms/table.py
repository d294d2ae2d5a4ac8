"""The table of a comparison of arms: from tested runs to what each arm costs, reaches, and gains on its twins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import yaml
from rich import box
from rich.table import Table
from torch import nn

import octvideo.models as models
from lab.arms.runs import ARMS, Arm, ArmNetwork, ArmRun, ArmSettings, read_config
from lab.timing import step_seconds
from octvideo.errors import UserError
from octvideo.evaluation.metrics import Difference, Estimate, mean_top_k, paired_difference
from octvideo.evaluation.scores import VideoScores
from octvideo.files import markdown
from octvideo.octave import count_cost

HEADER = (
    "network", "arm", "multiply-adds (M)", "step time to ordinary", "seeds", "top-1, % (95 %)", "top-5, % (95 %)",
    "top-1 to ordinary, points", "top-1 to pool, points",
)  # fmt: skip
_LEGEND = (
    "Intervals are over videos (Wilson's where the seeds agree on all, else a bootstrap of the seeds' average;",
    "differences: a paired bootstrap). The chance in training is not in them: one that leaves 0 out says that these",
    "trained networks differ, not that the arms do; for that, see whether the seeds agree. Under a difference, for",
    "each seed: videos won:lost, p of the exact McNemar test.",
)
# Of a recipe, what may differ between runs that are compared: names, seeds, the arm, and what changes no result.
_FREE = {
    "trainer.default_root_dir", "trainer.enable_progress_bar", "trainer.log_every_n_steps", "data.num_workers",
    "data.how_to_get", "model.network.init_args.alpha", "model.network.init_args.downsample",
}  # fmt: skip


@dataclass(frozen=True)
class FoundRun:
    """What the folder of a tested run says.

    Args:
        config: that it was trained with.
        views: clips and crops of each video in the test.
        scores: of the test.
    """

    config: dict[str, Any]
    views: tuple[int, int]
    scores: VideoScores


# A row of the table, one network as one arm: cells in the order of HEADER, which may have several lines.
Row = tuple[str, ...]


def check_networks(runs: Sequence[ArmRun]) -> None:
    """Builds every network once, without memory, so that a wrong name ends no night of training.

    Raises:
        UserError: one can't be built.
    """
    for run in {(run.network, run.arm): run for run in runs}.values():
        with torch.device("meta"):
            build(run, {})


def compare(runs: Sequence[ArmRun], settings: ArmSettings, *, rounds: int) -> tuple[list[Row], list[str]]:
    """The table of the runs that are there.

    Args:
        runs: that were planned.
        settings: of all.
        rounds: of timed training steps; 0 times nothing.

    Returns:
        Its rows, and what to know beside them.

    Raises:
        UserError: none is tested, or two that are compared differ in more than seed and arm.
    """
    tested = {run: found for run in runs if (found := read_run(run, settings))}
    if not tested:
        names = ", ".join(run.name for run in runs[:3])
        raise UserError(f"no tested run in {settings.runs_dir}: looked for {names}, ...; train without --only_table")
    rows: list[Row] = []
    notes = list(_LEGEND)
    for network in dict.fromkeys(run.network for run in runs):
        own = {run: found for run, found in tested.items() if run.network == network}
        if own:
            check_alike(own)
            rows += _rows(network, own, alpha=runs[0].alpha, rounds=rounds)
            notes.append(f"{network.short}: {_recipe(next(iter(own.values())))}")
    missing: dict[str, list[str]] = {}
    for run in runs:
        if run not in tested:
            missing.setdefault(f"{run.network.short} {run.arm}", []).append(f"s{run.seed}")
    if missing:
        notes.append("Not tested yet: " + ", ".join(" ".join([arm, *seeds]) for arm, seeds in missing.items()))
    return rows, notes


def read_run(run: ArmRun, settings: ArmSettings) -> FoundRun | None:
    """What is in the folder of a run, or None where it is not tested.

    Raises:
        UserError: the folder holds another run than the one asked for.
    """
    folder = settings.runs_dir / run.name
    config = read_config(run, settings)
    if config is None or not (folder / "scores.npz").is_file():
        return None
    test = folder / "config_test.yaml"
    data = yaml.safe_load(test.read_text(encoding="utf-8"))["data"] if test.is_file() else config["data"]
    if settings.num_clips not in (None, data["num_clips"]):
        raise UserError(
            f"{folder} was tested with {data['num_clips']} clips of a video, asked for are {settings.num_clips}: "
            f"test it again with --data.num_clips {settings.num_clips}"
        )
    return FoundRun(config, (data["num_clips"], data["num_crops"]), VideoScores.load(folder / "scores.npz"))


def check_alike(tested: Mapping[ArmRun, FoundRun]) -> None:
    """Refuses to compare runs of one network that differ in more than seed and arm.

    Raises:
        UserError: they do, with the first difference.
    """
    (first, expected), *others = tested.items()
    keys = dict(_flat({key: expected.config[key] for key in ("model", "data", "trainer")}))
    for run, found in others:
        if found.views != expected.views:
            views = f"{' x '.join(map(str, found.views))} clips x crops and {' x '.join(map(str, expected.views))}"
            raise UserError(f"{run.name} and {first.name} were tested with {views}: test one of them again")
        for key, value in _flat({key: found.config[key] for key in ("model", "data", "trainer")}):
            # Another version's config may have keys that this one has not.
            if key not in _FREE and keys.get(key, value) != value:
                raise UserError(
                    f"{run.name} and {first.name} were trained with {key} {value} and {keys[key]}: runs that are "
                    "compared may differ in seed and arm only"
                )


def build(run: ArmRun, init_args: Mapping[str, Any]) -> nn.Module:
    """The network of a run, not trained.

    Args:
        run: that says the builder and the arm.
        init_args: all others of the builder's arguments.

    Raises:
        UserError: there is no such image network.
    """
    builder = getattr(models, run.network.class_path.rpartition(".")[2])
    return builder(**{**init_args, **run.init_args})


def _rows(network: ArmNetwork, tested: Mapping[ArmRun, FoundRun], *, alpha: float, rounds: int) -> Iterator[Row]:
    config = next(iter(tested.values())).config
    data, init_args = config["data"], config["model"]["network"]["init_args"]
    clip = (3, data["clip_frames"], data["crop_px"], data["crop_px"])  # (C,T,H,W)
    # Twins are built from one config: an arm that has no run yet has a cost already.
    twins = {arm: build(ArmRun(network, arm, 0, alpha), init_args) for arm in ARMS}
    adds = {arm: count_cost(twin, (1, *clip)).multiply_adds for arm, twin in twins.items()}
    ratios: dict[Arm, list[float]] = {arm: [] for arm in ARMS}
    if rounds > 0:
        train_px = (data["augment"] or {}).get("crop_px", data["crop_px"])
        batch = (data["batch_size"], 3, data["clip_frames"], train_px, train_px)  # (N,C,T,H,W)
        named: dict[str, nn.Module] = {str(arm): twin for arm, twin in twins.items()}
        seconds = step_seconds(named, batch, rounds=rounds, channels_last=config["model"]["channels_last"])
        ratios = {arm: [a / b for a, b in zip(seconds[arm], seconds["ordinary"], strict=True)] for arm in ARMS}
    scores = {arm: {run.seed: found.scores for run, found in tested.items() if run.arm == arm} for arm in ARMS}
    for arm in ARMS:
        runs, share = scores[arm], adds[arm] / adds["ordinary"]
        yield (
            network.short,
            {"ordinary": "ordinary", "pool": "ordinary + pool", "oct": f"octave, alpha {alpha:g}"}[arm],
            f"{adds[arm] / 1e6:.1f}" + (f" ({100 * share:.0f} %)" if share != 1 else ""),
            ratio_range(ratios[arm]),
            " ".join(map(str, runs)) or "–",
            *(_share(mean_top_k(runs, k)) if runs else "–" for k in (1, 5)),
            "" if arm == "ordinary" else _difference(paired_difference(runs, scores["ordinary"])),
            _difference(paired_difference(runs, scores["pool"])) if arm == "oct" else "",
        )


def drawn_table(rows: Sequence[Row]) -> Table:
    """The rows for a terminal, a line between networks."""
    drawn = Table(box=box.SIMPLE_HEAD)
    for n, name in enumerate(HEADER):
        drawn.add_column(name, justify="left" if n < 2 else "right", no_wrap=True)
    for row, following in zip(rows, [*rows[1:], rows[-1]], strict=True):
        drawn.add_row(*row, end_section=following[0] != row[0])
    return drawn


def markdown_table(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """Rows and notes, ready for a README."""
    table = markdown(HEADER, [[cell.replace("\n", "<br>") for cell in row] for row in rows], left=2)
    return "\n".join([table, "", *notes])


def ratio_range(ratios: Sequence[float]) -> str:
    """Median, smallest and largest: '0.93 (0.91–0.97)'; all 1 is the arm that others are compared with."""
    if not ratios or set(ratios) == {1.0}:
        return "1" if ratios else ""
    return f"{float(np.median(ratios)):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def _share(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return ""
    mean = difference.mean
    value, low, high = (f"{100 * share:+.1f}".replace("-", "−") for share in (mean.value, mean.low, mean.high))
    seeds = [f"s{seed.seed} {seed.won}:{seed.lost} p {seed.p:.2g}" for seed in difference.seeds]
    return "\n".join([f"{value} ({low} to {high})", *seeds])


def _recipe(run: FoundRun) -> str:
    data, (clips, crops) = run.config["data"], run.views
    return (
        f"{run.config['trainer']['max_epochs']} epochs, clips of 3x{data['clip_frames']}x{data['crop_px']}x"
        f"{data['crop_px']}, batches of {data['batch_size']}, tested on {len(run.scores.known())} videos with "
        f"{clips} x {crops} views"
    )


def _flat(content: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
