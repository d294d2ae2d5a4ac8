"""What an arm has to do, counted: multiply-adds of a call, and the bytes that its convolutions move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lab.benchmark.arms import Arm
from lab.benchmark.networks import build_network
from octvideo.errors import UserError
from octvideo.files import one_line
from octvideo.octave import Octave

_BYTES = {"f32": 4, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Counts:
    """The least that one call of an arm must do.

    Args:
        multiply_adds: of convolutions and matrix products, with those of the backward pass in training.
        traffic: bytes of all maps that convolutions read and write in one forward pass, each once. What the engine
            moves beside that (copies, norms by themselves) is its own doing, and not in it.
        parameters: learnt numbers.
    """

    multiply_adds: int
    traffic: int
    parameters: int


def count(arm: Arm) -> Counts:
    """Counts on meta tensors: nothing is computed.

    Raises:
        UserError: the network can't be built, or takes no such clips.
    """
    with torch.device("meta"):
        network = build_network(arm)
    training = arm.mode == "training"
    numbers = 0

    def add(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal numbers
        numbers += _numel(args[0]) + _numel(output)

    for module in network.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            module.register_forward_hook(add)
    network.train(training)
    try:
        with torch.set_grad_enabled(training), FlopCounterMode(display=False) as counter:
            logits = network(torch.zeros(*arm.clip_shape, device="meta"))
            if training:
                logits.sum().backward()
    except (RuntimeError, ValueError, UserError) as error:
        clip = "x".join(map(str, arm.clip_shape))
        raise UserError(f"{arm.network} takes no clips of {clip}: {one_line(error)}") from error
    parameters = sum(parameter.numel() for parameter in network.parameters())
    # torch counts a multiply-add as two operations.
    return Counts(counter.get_total_flops() // 2, numbers * _BYTES[arm.precision], parameters)


def _numel(value: Tensor | Octave) -> int:
    return sum(part.numel() for part in (value if isinstance(value, Octave) else (value,)))
