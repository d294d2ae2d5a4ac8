"""Precise batch norm: statistics over many training batches with the weights as they are (Wu & Johnson, "Rethinking
Batch in BatchNorm", arXiv 2105.07576, section 3).

While weights change, a running average mixes statistics of older weights into those of the newest. As fvcore's
update_bn_stats, whose norms take no Octave: the mean over all positions of all batches, and the variance about it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


class BatchNormEstimate:
    """Sets the statistics of a network's batch norms, octave and fused ones too, to those over given batches.

    Norms normalise by each batch meanwhile, and all else is in evaluation. At the end running means and variances are
    set, the same in all processes, and nothing else of the network has changed. Those of frozen norms, and of norms
    that saw nothing, stay.

    Args:
        network: in eval mode; a compiled one runs uncompiled.
        frozen: modules whose statistics stay.
    """

    def __init__(self, network: nn.Module, frozen: Iterable[nn.Module] = ()) -> None:
        self._network, stay = network, set(frozen)
        self._norms: list[Any] = [
            module
            for module in network.modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None and module not in stay
        ]

    def __len__(self) -> int:
        """How many norms it is for."""
        return len(self._norms)

    @torch.no_grad()
    def over(self, batches: Iterable[Any], run: Callable[[Any], object]) -> None:
        """Runs all batches and sets the statistics.

        Args:
            batches: none without a clip; processes may have different numbers of them.
            run: takes one through the network.
        """
        before = [_state(norm) for norm in self._norms]
        means = [norm.running_mean.float() for norm in self._norms]
        self._sums = [torch.zeros(3, len(mean), device=mean.device) for mean in means]  # count, mean, variance · count
        hooks = [
            norm.register_forward_hook(_Adds(norm, sums)) for norm, sums in zip(self._norms, self._sums, strict=True)
        ]
        try:
            for norm in self._norms:
                norm.momentum = 1.0  # what it keeps is this batch's alone
                norm.training = True
            with torch.compiler.set_stance("force_eager"):  # compiled code does not look for new hooks
                for batch in batches:
                    run(batch)
        finally:
            for hook in hooks:
                hook.remove()
            for norm, state in zip(self._norms, before, strict=True):
                _restore(norm, *state)
        self._set()

    def _set(self) -> None:
        if not self._norms:
            return
        sums = torch.cat(self._sums, 1)  # (3,C of all norms)
        if distributed.is_available() and distributed.is_initialized():
            each = [torch.empty_like(sums) for _ in range(distributed.get_world_size())]
            distributed.all_gather(each, sums)
            sums = torch.zeros_like(sums)
            for other in each:  # in one order, so that all processes get the same
                _merge(sums, *other.unbind())
        for norm, (count, mean, squares) in zip(
            self._norms, (part.unbind() for part in sums.split([len(s[0]) for s in self._sums], 1)), strict=True
        ):
            seen = count > 0
            for own, new in ((norm.running_mean, mean), (norm.running_var, squares / count.clamp_min(1))):
                own.copy_(torch.where(seen, new.to(own.dtype), own))


def training_clips(trainer: L.Trainer, datamodule: L.LightningDataModule | None, most: int) -> Iterator[Tensor]:
    """Clips of the first batches of the running epoch, on the device, without augmentation other than the data's.

    Args:
        trainer: whose epoch may be in the middle of its own loader: a loader of their own is made, where that can be.
        datamodule: the trainer's, or None.
        most: batches.
    """
    loader: Any = trainer.train_dataloader if datamodule is None else datamodule.train_dataloader()
    if hasattr(getattr(loader, "batch_sampler", None), "set_epoch"):
        loader.batch_sampler.set_epoch(trainer.current_epoch)
    for batch in itertools.islice(loader, most):
        if len(batch["label"]):  # some video could be read
            yield trainer.strategy.batch_to_device(batch)["video"]


class _Adds:
    """A hook that adds what a norm has seen to sums of count, mean, variance · count: (3, C)."""

    def __init__(self, norm: Any, sums: Tensor) -> None:
        self.sums = sums
        partition = getattr(norm, "partition", None)  # of an octave norm
        self.is_low = torch.zeros_like(sums[0], dtype=torch.bool)
        if partition is not None:
            self.is_low = torch.tensor(partition.is_low, device=sums.device)

    def __call__(self, norm: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x = inputs[0]
        high, low = (x, None) if isinstance(x, Tensor) else (x.high, x.low)
        count = torch.where(self.is_low, 0.0 if low is None else _positions(low), _positions(high))  # (C,)
        biased = (count - 1).clamp_min(0) / count.clamp_min(1)  # of torch's running variance, which is unbiased
        _merge(self.sums, count, norm.running_mean.float(), norm.running_var.float() * biased * count)


def _positions(x: Tensor) -> float:
    return float(x.numel() // max(x.shape[1], 1))


def _merge(sums: Tensor, count: Tensor, mean: Tensor, squares: Tensor) -> None:
    """Adds positions to others, by their counts, means and sums of squared distances from these (Chan et al. 1979)."""
    total = sums[0] + count
    share = count / total.clamp_min(1)
    distance = torch.where(count > 0, mean - sums[1], 0)
    sums[2] += torch.where(count > 0, squares, 0) + distance.square() * sums[0] * share
    sums[1] += distance * share
    sums[0] = total


def _state(norm: Any) -> tuple[Any, ...]:
    count = norm.num_batches_tracked
    kept = (norm.running_mean.clone(), norm.running_var.clone(), None if count is None else count.clone())
    return norm.momentum, norm.training, *kept


def _restore(norm: Any, momentum: Any, training: bool, mean: Tensor, var: Tensor, count: Tensor | None) -> None:
    norm.momentum, norm.training = momentum, training
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)
    if count is not None:
        norm.num_batches_tracked.copy_(count)
