"""How long a training step of one network takes beside another's, on one thread of a machine that may be busy."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.training.module import VideoClassifier


def step_seconds(
    networks: Mapping[str, nn.Module], clip_shape: Sequence[int], *, rounds: int, channels_last: bool = False
) -> dict[str, list[float]]:
    """CPU seconds of a training step (normalise, forward, cross-entropy, backward), a number per round.

    All networks take turns in each round, in another order every time, so that whatever slows the machine slows all:
    compare numbers of the same round. The time is the process's own on one thread; there is one more round, first,
    that warms up. Optimizer, data loading and evaluation are not in it: they cost every arm the same.

    Args:
        networks: by name, clips (N, 3, T, H, W) to logits (N, K).
        clip_shape: of one uint8 batch, (N, 3, T, H, W).
        rounds: 1 or more.
        channels_last: as `VideoClassifier` has it.

    Raises:
        ValueError: no round is asked for.
    """
    if rounds < 1:
        raise ValueError(f"rounds: got {rounds}, expected 1 or more")
    modules = {name: VideoClassifier(network, channels_last=channels_last) for name, network in networks.items()}
    clips = torch.randint(0, 256, tuple(clip_shape), dtype=torch.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    names, threads = list(modules), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number in range(rounds + 1):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                seconds[name].append(_step(modules[name], clips))
    finally:
        torch.set_num_threads(threads)
    return {name: times[1:] for name, times in seconds.items()}


def _step(module: VideoClassifier, clips: Tensor) -> float:
    labels = torch.arange(len(clips)) % module.num_classes  # (N,)
    module.zero_grad(set_to_none=True)
    started = time.process_time()
    F.cross_entropy(module(clips), labels).backward()
    return time.process_time() - started
