"""What prepared networks have beside convolutions: squeeze-excitation and temporal shifts.

A squeeze-excitation is a mean over each clip, two ordinary convolutions of one pixel that make a gate, and a product
with it. Of an octave pair, means and gates have the high channels first, whatever the network's order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from octvideo.octave.features import Octave
from octvideo.octave.fused.activations import activated
from octvideo.octave.kernel.formats import F32, Format, LayerQuanta
from octvideo.octave.kernel.fused_conv import Activation, FusedLayer
from octvideo.octave.kernel.library import load_library
from octvideo.octave.kernel.light_layers import FusedMean, FusedScale, FusedShift
from octvideo.octave.temporal_shift import TemporalShift


class PreparedOperation(nn.Module):
    """What they have.

    Attributes:
        gives_pair: whether its result is an Octave.
        takes_num_frames: whether `forward` takes the number of frames of a clip, too.
        fused: as the kernel has it, after `fuse`.
        kernel_has: whether the kernel is there.
    """

    gives_pair = False
    takes_num_frames = False

    def __init__(self) -> None:
        super().__init__()
        self.fused: FusedLayer | None = None

    @property
    def kernel_has(self) -> bool:
        return load_library() is not None

    def fuse(self, format: Format = F32, quanta: LayerQuanta | None = None) -> bool:
        """Prepares, once for each format, for the kernel; whether that is there."""
        if self.fused is None or (self.fused.format, self.fused.quanta) != (format, quanta):
            self.fused = self.as_fused(format, quanta)
        return self.kernel_has

    def as_fused(self, format: Format, quanta: LayerQuanta | None) -> FusedLayer:
        """As the kernel has it."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "fused": None}


class PreparedMean(PreparedOperation):
    """(N, C, [T,] H, W) to (N, C, 1, ..., 1); of an Octave, the high channels and then the low ones."""

    def as_fused(self, format: Format, quanta: LayerQuanta | None) -> FusedLayer:
        return FusedMean(format, quanta)

    def forward(self, x: Tensor | Octave) -> Tensor:
        parts = [x] if isinstance(x, Tensor) else list(x)
        return torch.cat([part.mean(tuple(range(2, part.dim())), keepdim=True) for part in parts], 1)


class PreparedScale(PreparedOperation):
    """activation(x * gate + residual), of which activation and residual are optional.

    Args:
        gives_pair: whether x is an Octave.
        activation: what follows; set it before the first call.
    """

    def __init__(self, *, gives_pair: bool, activation: Activation = "none") -> None:
        super().__init__()
        self.gives_pair, self.activation = gives_pair, activation

    def as_fused(self, format: Format, quanta: LayerQuanta | None) -> FusedLayer:
        return FusedScale(self.activation, format, quanta)

    def forward(self, x: Tensor | Octave, residual: Tensor | Octave | None, gate: Tensor) -> Tensor | Octave:
        """Scale.

        Args:
            x: (N, C, [T,] H, W), or an Octave of it.
            residual: of the same form, or None.
            gate: (N, C, 1, ..., 1), of the high channels and then the low ones.
        """
        if isinstance(x, Tensor):
            assert not isinstance(residual, Octave)
            return self._scaled(x, residual, gate)
        assert not isinstance(residual, Tensor)
        gates = gate.split([x.high.shape[1], x.low.shape[1]], 1)
        residuals = residual or (None, None)
        return Octave(*[self._scaled(*given) for given in zip(x, residuals, gates, strict=True)])

    def _scaled(self, x: Tensor, residual: Tensor | None, gate: Tensor) -> Tensor:
        y = x * gate
        return activated(y if residual is None else y + residual, self.activation)

    def extra_repr(self) -> str:
        return self.activation


class PreparedShift(PreparedOperation):
    """As a `TemporalShift`: (N·T, C, H, W) or an Octave of it, and T, to the same."""

    takes_num_frames = True

    def __init__(self, shift: TemporalShift) -> None:
        super().__init__()
        self.shift, self.gives_pair = shift, bool(shift.partition.low)

    def as_fused(self, format: Format, quanta: LayerQuanta | None) -> FusedLayer:
        return FusedShift(self.shift.high, self.shift.low, format, quanta)

    def forward(self, x: Tensor | Octave, num_frames: int) -> Tensor | Octave:
        made: Tensor | Octave = self.shift(x, num_frames)
        return made
