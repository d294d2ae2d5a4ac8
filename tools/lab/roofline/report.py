"""What a model of time says of several networks: tables, JSON, a picture."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lab.roofline.device import KINDS, Device, Kernel, Kind, Product
from octvideo.errors import UserError
from octvideo.evaluation.pictures import plain
from octvideo.files import json_text, read_text, whole_text

Work = Literal["training", "inference", "prepared"]
WORKS: tuple[Work, ...] = get_args(Work)
Way = Literal["eager", "fused"]
WAYS: tuple[Way, ...] = get_args(Way)
Forms = Literal["cuda", "plain"]
FORMS: tuple[Forms, ...] = get_args(Forms)

HEADER = (
    "network", "α", "work", "way", "forms", "kernels", "GB", "TFLOP", "forward ms", "ms", "of ordinary", "of plain",
)  # fmt: skip
_COLOURS: dict[Kind, str] = dict(
    zip(KINDS, ("#2a78b5", "#5fa8d3", "#d9622b", "#b3922f", "#2b8a5c", "#8357a8", "#b9bdc3"), strict=True)
)
_INK = "#23272e"


@dataclass(frozen=True)
class Share:
    """How much of a network is low: alpha, and the multiple that its low channels are rounded to.

    Written `.1` or `.1:8`.
    """

    alpha: float
    multiple: int = 1

    def __str__(self) -> str:
        text = f"{self.alpha:g}".removeprefix("0") or "0"
        return text if self.multiple == 1 else f"{text}:{self.multiple}"


@dataclass(frozen=True)
class Row:
    """One network in one way of running it.

    Args:
        network: the builder's name.
        share: of low channels.
        work: a step of training, a forward pass, or one of the prepared network.
        way: operation by operation, or compiled.
        forms: those for CUDA, or the layers one by one.
        clip_shape: (N, 3, T, H, W).
        precision: of the maps.
        kernels: how many of each there are.
    """

    network: str
    share: Share
    work: Work
    way: Way
    forms: Forms
    clip_shape: tuple[int, ...]
    precision: str
    kernels: Counter[Kernel] = field(hash=False)

    def twins(self, *, forms: Forms | None = None) -> tuple[Any, ...]:
        """What it shares with the ordinary network that it is compared with, in its own forms or in others."""
        return self.network, self.work, self.way, forms or self.forms, self.clip_shape, self.precision

    def seconds(self, device: Device, kernels: Iterable[Kernel] | None = None) -> float:
        """Of all kernels, or of some."""
        return sum(device.seconds(kernel) * self.kernels[kernel] for kernel in (kernels or self.kernels))

    def by_kind(self, device: Device) -> dict[Kind, float]:
        """Seconds of each kind."""
        return {kind: self._total(device, [k for k in self.kernels if k.kind == kind]) for kind in KINDS}

    def by_phase(self, device: Device) -> dict[str, float]:
        """Seconds of forward, backward and the optimizer, as far as there are any."""
        phases = dict.fromkeys(kernel.phase for kernel in self.kernels)
        return {phase: self._total(device, [k for k in self.kernels if k.phase == phase]) for phase in phases}

    def _total(self, device: Device, kernels: list[Kernel]) -> float:
        return self.seconds(device, kernels) if kernels else 0.0

    @property
    def count(self) -> int:
        """Kernels that are launched."""
        return self.kernels.total()

    @property
    def bytes(self) -> int:
        """That they read and write."""
        return sum(kernel.bytes * count for kernel, count in self.kernels.items())

    @property
    def flops(self) -> int:
        """Of convolutions and products."""
        return sum(k.product.flops * count for k, count in self.kernels.items() if k.product is not None)


def ratio(row: Row, rows: Sequence[Row], device: Device, *, forms: Forms | None = None) -> float | None:
    """A row's time over the ordinary network's of the same work and way.

    Args:
        rows: that have it, or the result is None.
        forms: of the ordinary network; None: the row's.
    """
    wanted = row.twins(forms=forms)
    twin = next((other for other in rows if other.share.alpha == 0 and other.twins() == wanted), None)
    return None if twin is None else row.seconds(device) / twin.seconds(device)


def summary(rows: Sequence[Row], device: Device) -> list[tuple[str, ...]]:
    """A line for each row, in the order of HEADER."""
    lines = []
    for row in rows:
        of_own, of_plain = (ratio(row, rows, device, forms=forms) for forms in (None, FORMS[1]))
        numbers = str(row.count), f"{row.bytes / 1e9:.1f}", f"{row.flops / 1e12:.2f}"
        times = [f"{1e3 * seconds:.2f}" for seconds in (row.by_phase(device)["forward"], row.seconds(device))]
        ratios = ["" if found is None else f"{found:.2f}" for found in (of_own, of_plain)]
        lines.append((row.network, str(row.share), row.work, row.way, row.forms, *numbers, *times, *ratios))
    return lines


def kinds(rows: Sequence[Row], device: Device) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """For each network, work and way a table of milliseconds, and kernels in brackets: title, header, a line a kind."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.twins(), []).append(row)
    tables = []
    for own in groups.values():
        spent = [row.by_kind(device) for row in own]
        lines = []
        for kind in KINDS:
            counts = [sum(n for k, n in row.kernels.items() if k.kind == kind) for row in own]
            cells = [f"{1e3 * ms[kind]:.2f} ({count})" for ms, count in zip(spent, counts, strict=True)]
            lines.append((kind, *cells))
        header = ("ms (kernels)", *(f"α {row.share}" for row in own))
        tables.append((f"{own[0].network}, {own[0].work}, {own[0].way}, {own[0].forms} forms", header, lines))
    return tables


LARGEST_HEADER = ("kernel", "phase", "shape", "kernels", "GB", "ms")


def largest(row: Row, device: Device, number: int) -> list[tuple[str, ...]]:
    """The kernels that take the most time, those of one name and shape together, in the order of LARGEST_HEADER."""
    groups: dict[tuple[str, str, tuple[int, ...]], list[float]] = {}
    for kernel, count in row.kernels.items():
        sums = groups.setdefault((kernel.name, kernel.phase, kernel.shape), [0, 0.0, 0.0])
        for n, value in enumerate((count, count * kernel.bytes / 1e9, 1e3 * count * device.seconds(kernel))):
            sums[n] += value
    ordered = sorted(groups.items(), key=lambda group: -group[1][2])[:number]
    return [
        (
            name if len(name) <= 60 else name[:59] + "…",
            phase,
            "x".join(map(str, shape)),
            f"{n:g}",
            f"{gb:.2f}",
            f"{ms:.2f}",
        )
        for (name, phase, shape), (n, gb, ms) in ordered
    ]


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def save(path: Path, rows: Sequence[Row], device: Device, words: str) -> None:
    """Writes every kernel, and what the model makes of them on a device.

    Args:
        path: of the JSON.
        words: of the command line.
    """
    content = {
        "command": words,
        "device": asdict(device),
        "rows": [
            {
                "network": row.network,
                "alpha": row.share.alpha,
                "channel_multiple": row.share.multiple,
                "work": row.work,
                "way": row.way,
                "forms": row.forms,
                "clip_shape": row.clip_shape,
                "precision": row.precision,
                "kernels": row.count,
                "bytes": row.bytes,
                "flops": row.flops,
                "milliseconds": 1e3 * row.seconds(device),
                "of_ordinary": ratio(row, rows, device),
                "of_plain": ratio(row, rows, device, forms="plain"),
                "by_kind": {kind: 1e3 * seconds for kind, seconds in row.by_kind(device).items()},
                "by_phase": {phase: 1e3 * seconds for phase, seconds in row.by_phase(device).items()},
                "launches": [{**asdict(kernel), "count": count} for kernel, count in row.kernels.items()],
            }
            for row in rows
        ],
    }
    with whole_text(path) as file:
        file.write(json_text(content))


def load(path: Path) -> list[Row]:
    """The rows of a file that `save` wrote.

    Raises:
        UserError: it is none.
    """
    try:
        content = json.loads(read_text(path))
        return [_row(row) for row in content["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--from: got {path}, expected a file that --json wrote") from error


def _row(saved: dict[str, Any]) -> Row:
    kernels: Counter[Kernel] = Counter()
    for launch in saved["launches"]:
        count, product = launch.pop("count"), launch.pop("product")
        shape = tuple(launch.pop("shape"))
        kernels[Kernel(**launch, product=product and Product(**product), shape=shape)] += count
    share = Share(saved["alpha"], saved["channel_multiple"])
    clip_shape = tuple(saved["clip_shape"])
    how = saved["work"], saved["way"], saved["forms"]
    return Row(saved["network"], share, *how, clip_shape, saved["precision"], kernels)


def draw(path: Path, rows: Sequence[Row], device: Device, title: str) -> None:
    """Writes a picture: a panel for each network and work, a stacked bar of kinds for each alpha and way.

    Args:
        path: of the PNG.
        title: above it.
    """
    panels: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        panels.setdefault((row.network, row.work), []).append(row)
    canvas = Figure(figsize=(max(7.0, 4.0 * len(panels)), 5.0), layout="constrained", facecolor="white")
    FigureCanvasAgg(canvas)
    for axes, ((network, work), own) in zip(
        canvas.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for place, row in enumerate(own):
            bottom = 0.0
            for kind, seconds in row.by_kind(device).items():
                axes.bar(place, 1e3 * seconds, 0.72, bottom, color=_COLOURS[kind])
                bottom += 1e3 * seconds
            found = ratio(row, rows, device, forms="plain") or ratio(row, rows, device)
            if found is not None:
                axes.annotate(f"{found:.2f}", (place, bottom), ha="center", va="bottom", fontsize=8, color=_INK)
        axes.set_xticks(range(len(own)), [f"{row.share}\n{row.way}\n{row.forms}" for row in own], fontsize=8)
        axes.set_title(f"{network}, {work}", fontsize=10.5, color=_INK, loc="left")
        axes.set_ylabel("ms" if axes.get_subplotspec().is_first_col() else "", color=_INK)
        axes.margins(y=0.1)
        plain(axes)
    handles = [Figure().subplots().bar(0, 0, color=_COLOURS[kind], label=kind) for kind in KINDS]
    canvas.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9, labelcolor=_INK)
    told = textwrap.fill(f"{title}. Above the bars: of the ordinary network in plain forms", 48 * len(panels))
    canvas.suptitle(told, fontsize=11, color=_INK, x=0.02, ha="left")
    canvas.savefig(path, dpi=130)
