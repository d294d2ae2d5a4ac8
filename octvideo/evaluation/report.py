"""From the scores of videos to figures with intervals, and to tables of them for a terminal or a README."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from octvideo.errors import UserError
from octvideo.evaluation.metrics import METRICS, VideoMetrics, pair_hits, paired_difference, wilson_interval
from octvideo.evaluation.scores import VideoScores
from octvideo.evaluation.several import SEVERAL_METRICS, hits_of_several, map_intervals, mean_average_precisions
from octvideo.files import markdown

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Figure:
    """One metric of one evaluation.

    Args:
        name: as printed.
        value: in [0, 1], NaN where nothing was counted.
        hits: videos that were right; None for a mean that is no share of videos.
        total: videos that were counted; None where `hits` is.
        resampled: the 95 % interval of a mean, by a bootstrap over videos.
    """

    name: str
    value: float
    hits: int | None = None
    total: int | None = None
    resampled: tuple[float, float] | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval: Wilson's of a share of videos, a bootstrap's of mAP; None of other means."""
        if self.hits is None or self.total is None:
            return self.resampled
        return wilson_interval(self.hits, self.total)


def figures(scores: VideoScores, *, pairs: Pairs = ()) -> list[Figure]:
    """The metrics of the videos with a known label, and the decisions inside pairs.

    Args:
        scores: of an evaluation.
        pairs: names of opposite classes.

    Raises:
        UserError: no label is known, or a pair names no class.
    """
    scores = scores.known()
    if not len(scores):
        raise UserError("no video has a known label, so there is nothing to measure")
    values, labels = torch.from_numpy(scores.scores), torch.from_numpy(scores.labels)  # (N,K), (N,)
    if scores.truth is not None:
        return _of_several(values, torch.from_numpy(scores.truth))
    # Not summed over processes: these are all videos, and the others are not here.
    metrics = VideoMetrics(len(scores.class_names), sync_on_compute=False)
    metrics.update(values, labels)
    shares = {"top1": metrics.hits1, "top5": metrics.hits5}
    out = [
        _share(METRICS[name], shares[name], len(scores)) if name in shares else Figure(METRICS[name], value)
        for name, value in metrics.compute().items()
    ]
    if pairs:
        ids = [(_id_of(a, scores.class_names), _id_of(b, scores.class_names)) for a, b in pairs]
        hits = pair_hits(values, labels, ids)
        out.append(_share("opposite pairs", hits, len(hits)))
    return out


def _of_several(values: torch.Tensor, truth: torch.Tensor) -> list[Figure]:
    """Of videos that may have several labels, whose pairs of opposite classes are not asked for."""
    macro, micro = mean_average_precisions(values, truth)
    hits = hits_of_several(values, truth)
    names = SEVERAL_METRICS
    intervals = map_intervals(values, truth)
    means = [
        Figure(names["map"], macro, resampled=intervals[0]),
        Figure(names["map_micro"], micro, resampled=intervals[1]),
    ]
    return [*means, _share(names["top1"], hits, len(hits))]


def confusion_matrix(scores: VideoScores) -> np.ndarray:
    """How many videos of each class (row) were taken for each class (column), int64 (K, K).

    Videos whose scores are not finite are in no cell.
    """
    scores = scores.known()
    k = len(scores.class_names)
    predicted = scores.predicted()  # (N,)
    is_taken = predicted >= 0
    return np.bincount((scores.labels * k + predicted)[is_taken], minlength=k * k).reshape(k, k)


def pairs_from(given: Sequence[str] | None, *, known: Pairs, class_names: Sequence[str]) -> Pairs:
    """The pairs to measure: those given as "a,b", else the known ones whose classes are all there, else none.

    Args:
        given: from a command line.
        known: of a data set.
        class_names: of the scores.

    Raises:
        UserError: one of the given is no pair.

    Example:
        >>> pairs_from(["open,close"], known=(), class_names=["close", "open"])
        [('open', 'close')]
    """
    if given is None:
        return known if {name for pair in known for name in pair} <= set(class_names) else ()
    pairs = []
    for text in given:
        first, comma, second = text.partition(",")
        if not (first.strip() and comma and second.strip()) or "," in second:
            raise UserError(f"--pairs: got '{text}', expected two class names as A,B")
        pairs.append((first.strip(), second.strip()))
    return pairs


def run_names(files: Sequence[Path]) -> list[str]:
    """A name for each file of scores: its run's, with as many folders before it as tell them apart.

    Example:
        >>> run_names([Path("runs/a/scores.npz"), Path("runs/b/scores.npz")])
        ['a', 'b']
    """
    # scores.npz is the run's own; scores_val.npz and the like add their name.
    whole = [file.resolve().with_suffix("").parts for file in files]
    whole = [parts[:-1] if parts[-1] == "scores" else parts for parts in whole]
    for depth in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-depth:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"the same file of scores is given twice: {', '.join(map(str, files))}")


def metrics_table(scores: VideoScores, *, pairs: Pairs = (), title: str | None = None) -> str:
    """The figures as text for a terminal, with the number of videos below.

    Args:
        scores: of an evaluation.
        pairs: names of opposite classes.
        title: above the table.

    Returns:
        Lines without a newline at the end; where no label is known, one line that says so.
    """
    if not len(known := scores.known()):
        return f"{len(scores)} videos scored; no label is known, so nothing was measured"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for header, justify in (("metric", "left"), ("value", "right"), ("95 % interval", "right")):
        table.add_column(header, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for figure in figures(scores, pairs=pairs):
        table.add_row(figure.name, percent(figure.value), percent_range(figure.interval))
    counted, unknown = f"{len(known)} videos, {len(scores.class_names)} classes", len(scores) - len(known)
    return f"{_as_text(table)}\n  {counted}" + (f"; {unknown} more without a label" if unknown else "")


def markdown_table(runs: Mapping[str, VideoScores], *, pairs: Pairs = ()) -> str:
    """One row per run, ready for a README.

    Args:
        runs: scores by the name of the run.
        pairs: names of opposite classes.
    """
    header, rows = list[str](), []
    for name, scores in runs.items():
        row = figures(scores, pairs=pairs)
        header = ["run", "videos", *(figure.name for figure in row)]
        cells = [percent(figure.value) + _bracketed(figure.interval) for figure in row]
        rows.append([name, str(len(scores.known())), *cells])
    return markdown(header, rows)


def comparison_table(runs: Mapping[str, VideoScores], *, pairs: Pairs = ()) -> str:
    """One row per run as text; runs of the same videos are also compared with the first, video by video.

    Args:
        runs: scores by the name of the run.
        pairs: names of opposite classes.
    """
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("run")
    table.add_column("videos", justify="right")
    for column, figure in enumerate(figures(next(iter(runs.values())), pairs=pairs)):
        table.add_column(figure.name, justify="right", no_wrap=True)
        if column == 0:
            table.add_column("95 % interval", justify="right", no_wrap=True)
    for name, scores in runs.items():
        top1, *others = figures(scores, pairs=pairs)
        cells = [percent(top1.value), percent_range(top1.interval), *(percent(f.value) for f in others)]
        table.add_row(name, str(len(scores.known())), *cells)
    (first, baseline), *rest = runs.items()
    lines = [f"  {name} against {first}: {compare_top1(scores, baseline)}" for name, scores in rest]
    return "\n".join([_as_text(table), *lines])


def compare_top1(scores: VideoScores, baseline: VideoScores) -> str:
    """In words: the difference in top-1 on the same videos, with the exact McNemar test.

    On the same videos, intervals that overlap say little; the videos that only one run has right say more.
    """
    try:
        difference = paired_difference({0: scores}, {0: baseline})
    except UserError:
        return "not the same videos, so compared by their intervals only"
    assert difference is not None
    points, (each,) = 100 * difference.mean.value, difference.seeds
    return f"{points:+.1f} points top-1; {each.won} videos won, {each.lost} lost, McNemar p = {each.p:.2g}"


def percent(value: float) -> str:
    """93.75 % as '93.8 %'; nothing counted is a dash."""
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def percent_range(interval: tuple[float, float] | None) -> str:
    """'14.9 – 26.3 %'; empty for a figure without interval."""
    return "" if interval is None else f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f} %"


def _bracketed(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})"


def _share(name: str, hits: torch.Tensor, total: int) -> Figure:
    return Figure(name, int(hits.sum()) / total if total else math.nan, int(hits.sum()), total)


def _id_of(name: str, class_names: Sequence[str]) -> int:
    if name not in class_names:
        raise UserError(f"pairs: no class '{name}' among {len(class_names)}: {', '.join(class_names[:12])}")
    return class_names.index(name)


def _as_text(table: Table) -> str:
    # A fixed width: a log file is no terminal, and rich would fold the table to 80 columns there.
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines())
