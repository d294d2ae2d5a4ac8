"""What `octavize` did to a network, layer by layer, in numbers and words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from octvideo.octave.conversion.calibration import CalibrationReport


@dataclass(frozen=True)
class OctaveReport:
    """What `octavize` did: each octave convolution; what merged or stayed ordinary, and why.

    Args:
        layers: path of each octave convolution to the low shares that it reads and writes.
        costs: path to its multiply-adds over the ordinary convolution's, on even sizes.
        merged: path or operation to the reason.
        alpha: with it, `octavize` makes the same network of an untrained one: what it was given, or, of a calibrated
            one, the share of each convolution.
        calibration: what was done with clips, if some were given.
    """

    layers: Mapping[str, tuple[float, float]]
    costs: Mapping[str, float]
    merged: Mapping[str, str]
    alpha: float | Mapping[str, float] = 0.0
    calibration: CalibrationReport | None = None

    def __str__(self) -> str:
        width = max([len(path) for path in self.layers], default=0)
        lines = [f"{len(self.layers)} octave convolutions (alpha in -> out, share of the ordinary multiply-adds):"]
        for path, (a_in, a_out) in self.layers.items():
            lines.append(f"  {path:<{width}}  {a_in:5.3f} -> {a_out:5.3f}  {100 * self.costs[path]:4.0f} %")
        if self.merged:
            lines.append("ordinary outputs, merged inputs, and other alphas than asked for:")
            for reason in dict.fromkeys(self.merged.values()):
                paths = [path for path, own in self.merged.items() if own == reason]
                more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
                lines.append(f"  {', '.join(paths[:3])}{more}: {reason}")
        return "\n".join(lines)
