"""The kernels of a network that runs operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lab.roofline.device import Kernel, Phase, Precision
from lab.roofline.fake import autocast_on, backward, fake_mode, functions_say_what_they_want, laid_out, put_on_gpu
from lab.roofline.operations import launches

Mode = Literal["inference", "training"]


class Recorder(TorchDispatchMode):
    """Notes the kernels of all operations within it.

    Attributes:
        kernels: in their order.
        phase: noted with those that follow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self.phase: Phase = "forward"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if isinstance(func, torch._ops.OpOverload):
            self.kernels += launches(func, args, kwargs, result, self.phase)
        return result


def record(work: Callable[[Recorder], Any]) -> list[Kernel]:
    """The kernels of `work`, which gets the recorder to say where a phase begins; to be called within `fake_mode`."""
    recorder = Recorder()
    with functions_say_what_they_want(), recorder:
        work(recorder)
    return recorder.kernels


def eager_kernels(
    network: nn.Module,
    clip_shape: tuple[int, ...],
    *,
    mode: Mode,
    precision: Precision = "bf16",
    channels_last: bool = True,
    optimizer: bool = False,
) -> list[Kernel]:
    """The kernels of one forward pass, or of one step of training with cross entropy.

    Args:
        network: of clips to logits; its tensors are replaced by fake ones.
        clip_shape: (N, 3, T, H, W) of float32 clips.
        mode: what runs.
        precision: "bf16" and "f16" are autocast.
        channels_last: the layout of clips and weights.
        optimizer: with SGD's step, with momentum and Nesterov's gradient, on lists of tensors.
    """
    with fake_mode():
        network = put_on_gpu(network, channels_last=channels_last).train(mode == "training")
        clips = laid_out(torch.empty(clip_shape, device="cuda"), channels_last)

        def work(recorder: Recorder) -> None:
            with torch.no_grad() if mode == "inference" else nullcontext(), autocast_on(precision):
                logits = network(clips)
                if mode == "inference":
                    return
                loss = F.cross_entropy(logits, labels)
            recorder.phase = "backward"
            backward(loss)
            if optimizer:
                recorder.phase = "optimizer"
                sgd.step()

        labels = torch.zeros(clip_shape[0], dtype=torch.long, device="cuda")
        if optimizer:
            sgd = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=1e-4, nesterov=True, foreach=True)
            for parameter in network.parameters():  # the buffers of a step that is not the first
                sgd.state[parameter]["momentum_buffer"] = torch.empty_like(parameter)
        return record(work)
