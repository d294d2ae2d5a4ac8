"""Times several things beside each other on a machine that may be busy: they take turns, round by round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from octvideo.training.module import VideoClassifier

T = TypeVar("T")


def rounds_of(turns: Mapping[str, Callable[[], T]], *, rounds: int, warm_up: int = 1) -> Iterator[dict[str, T]]:
    """What each turn returns (its own measurement), a mapping per round.

    All take one turn in each round, in another order every time, so that whatever slows the machine slows all:
    compare numbers of the same round. A round that is cut off (an exception, Ctrl-C) is not given out.

    Args:
        turns: by name; each does its work once and returns what it took.
        rounds: 1 or more.
        warm_up: rounds before these, whose numbers are dropped.

    Raises:
        ValueError: no round is asked for.

    Example:
        >>> [sorted(measured) for measured in rounds_of({"a": time_a, "b": time_b}, rounds=2)]
        [['a', 'b'], ['a', 'b']]
    """
    if rounds < 1:
        raise ValueError(f"rounds: got {rounds}, expected 1 or more")
    names = list(turns)
    for number in range(warm_up + rounds):
        first = number % len(names)
        measured = {name: turns[name]() for name in names[first:] + names[:first]}
        if number >= warm_up:
            yield {name: measured[name] for name in names}


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
    # Here, since a process that measures the memory of an engine has no use for Lightning.
    from octvideo.training.module import VideoClassifier

    modules = {name: VideoClassifier(network, channels_last=channels_last) for name, network in networks.items()}
    clips = torch.randint(0, 256, tuple(clip_shape), dtype=torch.uint8)
    turns = {name: partial(_timed_step, module, clips) for name, module in modules.items()}
    with torch_threads(1):
        measured = list(rounds_of(turns, rounds=rounds))
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


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """torch's number of threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
