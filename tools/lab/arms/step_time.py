"""How long a training step of one network takes beside another's, on one thread of a machine that may be busy."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.timing import rounds_of
from octvideo.training.module import VideoClassifier


def step_seconds(
    networks: Mapping[str, nn.Module], clip_shape: Sequence[int], *, rounds: int, channels_last: bool = False
) -> dict[str, list[float]]:
    """CPU seconds of a training step (normalise, forward, cross-entropy, backward), a number per round.

    All networks take turns in each round (`rounds_of`): compare numbers of the same round. The time is the process's
    own on one thread; there is one more round, first, that warms up. Optimizer, data loading and evaluation are not in
    it: they cost every arm the same.

    Args:
        networks: by name, clips (N, 3, T, H, W) to logits (N, K).
        clip_shape: of one uint8 batch, (N, 3, T, H, W).
        rounds: 1 or more.
        channels_last: as `VideoClassifier` has it.

    Raises:
        ValueError: no round is asked for.
    """
    modules = {name: VideoClassifier(network, channels_last=channels_last) for name, network in networks.items()}
    clips = torch.randint(0, 256, tuple(clip_shape), dtype=torch.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        turns = {name: partial(_timed_step, module, clips) for name, module in modules.items()}
        measured = list(rounds_of(turns, rounds=rounds))
    finally:
        torch.set_num_threads(threads)
    return {name: [seconds[name] for seconds in measured] for name in modules}


def training_step(module: VideoClassifier, clips: Tensor, *, autocast: torch.dtype | None = None) -> Tensor:
    """Forward and backward of one batch as training has them, without logging and metrics; gradients start at None.

    Args:
        module: in training mode.
        clips: uint8 (N, 3, T, H, W).
        autocast: as trainer.precision "bf16-mixed" (torch.bfloat16) has it; None is off.

    Returns:
        The loss, a scalar.
    """
    labels = torch.arange(len(clips), device=clips.device) % module.num_classes  # (N,)
    module.zero_grad(set_to_none=True)
    with torch.autocast(clips.device.type, autocast, enabled=autocast is not None):
        loss = F.cross_entropy(module(clips), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _timed_step(module: VideoClassifier, clips: Tensor) -> float:
    started = time.process_time()
    training_step(module, clips)
    return time.process_time() - started
