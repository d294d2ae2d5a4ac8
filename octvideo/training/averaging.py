"""An exponential moving average of a network's weights (EMA; Polyak & Juditsky 1992): what is evaluated, saved and
used, while training goes on with the weights themselves.

Lightning's EMAWeightAveraging is not used here: it copies the whole module with its teacher, begins before
`init_weights` are loaded, changes weights after precise batch norm has run, and leaves `save_weights_only` without
averages. The arithmetic is torch.optim.swa_utils'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from octvideo.errors import UserError

_PREFIX = "network."  # in the keys of a checkpoint
# Lightning's names of what a checkpoint has beside averages.
_CURRENT, _STATE = "current_model_state", "averaging_state"


class WeightAverage:
    """Averages of a network's parameters and of its norms' statistics, updated behind each optimizer step:

        average = decay * average + (1 - decay) * weight

    The first update copies. Statistics are averaged as the weights that they belong to, so that both are equally old;
    counts of batches are copied. Averages are float32 at least, whatever the network's precision.

    Args:
        decay: of the average, in (0, 1).
        warmup: begins with smaller decays, min(decay, 1 - n^(-2/3)) in the n-th update: timm's ModelEmaV3.

    Raises:
        UserError: `decay` is outside (0, 1).
    """

    def __init__(self, decay: float, *, warmup: bool = True) -> None:
        if not 0 < decay < 1:
            raise UserError(f"model.ema_decay: got {decay}, expected between 0 and 1, such as .9999, or 0 for none")
        self.decay, self.warmup, self.updates = decay, warmup, 0
        self._averages: dict[str, Tensor] = {}
        self._loaded: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] | None = None  # the network's own state, while it has the averages

    def __str__(self) -> str:
        decay = f"up to {self.decay:g}, by min(decay, 1 - n^(-2/3))" if self.warmup else f"{self.decay:g}"
        done = f"; {self.updates} updates so far" if self.updates else ""
        return f"weights are averaged: decay {decay}{done}; the averages are evaluated and saved"

    def decay_of(self, update: int) -> float:
        """Of the n-th update, from 1."""
        if update <= 1:
            return 0.0
        return min(self.decay, 1 - update ** (-2 / 3)) if self.warmup else self.decay

    @torch.inference_mode(False)
    @torch.no_grad()
    def begin(self, network: nn.Module) -> None:
        """Starts from what a checkpoint has given, else from the network, which is on its device.

        Args:
            network: whose weights are averaged from now on.
        """
        self._averages, self._kept = {}, None
        for key, value in _tensors(network).items():
            wide = torch.promote_types(value.dtype, torch.float32) if value.is_floating_point() else value.dtype
            self._averages[key] = torch.empty_like(value, dtype=wide).copy_(self._loaded.get(key, value))
        if not self._loaded:
            self.updates = 0
        self._loaded = {}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Behind an optimizer step."""
        self.updates += 1
        decay, state = self.decay_of(self.updates), _tensors(network)
        floats = [key for key, average in self._averages.items() if average.is_floating_point()]
        averages = [self._averages[key] for key in floats]
        weights = [state[key].to(average.dtype) for key, average in zip(floats, averages, strict=True)]
        get_ema_multi_avg_fn(decay)(averages, weights, self.updates)
        for key in self._averages.keys() - set(floats):
            self._averages[key].copy_(state[key])

    @torch.inference_mode(False)
    @torch.no_grad()
    def enter(self, network: nn.Module) -> None:
        """Puts the averages into the network, whose own state is kept."""
        state = _tensors(network)
        self._kept = {key: value.clone() for key, value in state.items()}
        _copy(self._averages, state)

    @torch.inference_mode(False)
    @torch.no_grad()
    def leave(self, network: nn.Module) -> None:
        """Gives the network its own state back. Statistics that were estimated meanwhile (precise batch norm) are the
        averages' from now on.
        """
        state, kept = _tensors(network), self._kept
        assert kept is not None
        buffers = {name for name, _ in network.named_buffers()} & state.keys()
        _copy({name: state[name] for name in buffers}, self._averages)
        _copy(kept, state)
        self._kept = None

    # ── checkpoints ─────────────────────────────────────────────────────────────────────────────────────────

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Makes the averages the weights of a checkpoint, puts the network's own beside them, and says so in its
        "octvideo" block; outside of a training there are none.

        Args:
            checkpoint: Lightning's.
        """
        if not self._averages:
            return
        facts = {"decay": self.decay, "warmup": self.warmup, "updates": self.updates}
        checkpoint["octvideo"] = checkpoint["octvideo"] | {"averaged": facts}
        own = checkpoint["state_dict"]
        averages = {_PREFIX + key: value for key, value in self._averages.items()}
        checkpoint["state_dict"] = own | averages
        checkpoint[_CURRENT] = own | {_PREFIX + key: value for key, value in (self._kept or {}).items()}
        checkpoint[_STATE] = {"updates": self.updates}

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Takes averages out of a checkpoint that training goes on from, which then has the network's own weights. One
        without averages begins them.

        Args:
            checkpoint: Lightning's, changed.
        """
        if not averaged_by_us(checkpoint):
            return
        averages = checkpoint["state_dict"]
        self._loaded = {key[len(_PREFIX) :]: value for key, value in averages.items() if key.startswith(_PREFIX)}
        self.updates = int(checkpoint[_STATE]["updates"])
        checkpoint["state_dict"] = checkpoint[_CURRENT]


def averaged_by_us(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """How a checkpoint's weights were averaged; None where they were not, or by a callback of Lightning's."""
    return (checkpoint.get("octvideo") or {}).get("averaged")


def check_goes_on(checkpoint: Mapping[str, Any], average: WeightAverage | None) -> None:
    """Refuses to go on without averages where a checkpoint has them as its weights.

    Args:
        checkpoint: Lightning's.
        average: this run's, or None.

    Raises:
        UserError: it has, and this run averages nothing.
    """
    averaged = averaged_by_us(checkpoint)
    if averaged and average is None:
        raise UserError(
            f"the checkpoint's run averages its weights (model.ema_decay {averaged['decay']}), this one does not: give "
            "its model.ema_decay, or start a new run from the averages with --init"
        )


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}


def _copy(source: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    for key, value in source.items():
        into[key].copy_(value)
