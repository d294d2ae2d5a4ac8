"""An arm as something to call: an engine on clips, or a training step, with the clips it runs on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lab.benchmark.arms import Arm
from lab.benchmark.networks import SEED, WeightStore, smooth_clips
from lab.benchmark.results import Memory
from octvideo.compiling import compile_module
from octvideo.errors import UserError
from octvideo.inference.engines import ENGINES, build_engine
from octvideo.octave import fuse_training, prepare_inference
from octvideo.octave.fused.prepare import use_bfloat16
from octvideo.octave.kernel.library import load_library


@dataclass(frozen=True)
class Call:
    """An arm, ready to run.

    Args:
        once: does the work of one call.
        logits: clips (N, 3, T, H, W) of the arm's shape to logits (N, K) on the CPU in f32; None in training.
        memory: where it was measured.
    """

    once: Callable[[], Any]
    logits: Callable[[Tensor], Tensor] | None = None
    memory: Memory | None = None


def make_call(arm: Arm, weights: WeightStore, *, threads: int | None, device: torch.device) -> Call:
    """Builds an arm.

    Args:
        arm: to build.
        weights: that its network takes.
        threads: that its engine may use; None is all. torch's own number is the caller's to set (`torch_threads`).
        device: to run on.

    Raises:
        UserError: the network or the engine can't be built here.
    """
    network = weights.network(arm)
    if arm.mode == "training":
        return _training_call(arm, network, device)
    engine = _engine(arm, network, threads, device)
    clips = _laid_out(smooth_clips(arm.clip_shape, seed=SEED + 3), arm, device)

    def logits(batch: Tensor) -> Tensor:
        return torch.as_tensor(engine(_laid_out(batch, arm, device))).float().cpu()

    return Call(lambda: engine(clips), logits)


def _training_call(arm: Arm, network: nn.Module, device: torch.device) -> Call:
    # Here, since a process that measures the memory of an engine has no use for Lightning and the seconds it takes.
    from lab.timing import training_step
    from octvideo.training.module import VideoClassifier

    layout = arm.layout == "channels_last"  # which arranges the network too
    module = VideoClassifier(network, channels_last=layout, compile=_compiles(arm), optimizer="sgd")
    if arm.fuse == "norms":  # as it does by itself where it has a trainer
        fuse_training(module.network)
    module = module.to(device).train()
    optimizer = module.configure_optimizers() if arm.optimizer == "sgd" else None
    clips = (127 + 60 * smooth_clips(arm.clip_shape, seed=SEED + 3)).clamp(0, 255).to(torch.uint8).to(device)

    def step() -> Tensor:
        loss = training_step(module, clips, autocast=torch.bfloat16 if arm.precision == "bf16" else None)
        if optimizer is not None:
            optimizer.step()
        return loss

    if arm.layout == "contiguous" and _compiles(arm):
        from torch._inductor import config  # torch.compile's own option is not VideoClassifier's

        with config.patch(layout_optimization=False):
            step()
    return Call(step)


def _compiles(arm: Arm) -> bool:
    return arm.engine != "plain" and ENGINES[arm.engine].compiles


def _engine(arm: Arm, network: nn.Module, threads: int | None, device: torch.device) -> Callable[[Tensor], Any]:
    if arm.layout == "channels_last":
        network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if arm.engine == "plain":
        return _plain(arm, network.to(device), device)
    if arm.layout == "contiguous" and ENGINES[arm.engine].start is not None:
        return _contiguous(arm, network, device)
    calibration = None
    if arm.precision == "int8":
        calibration = torch.cat([smooth_clips((1, *arm.clip_shape[1:]), seed=SEED + 10 + n) for n in range(16)])
    return build_engine(
        arm.engine,
        network,
        example_shape=arm.clip_shape,
        precision=arm.precision,
        num_threads=threads,
        device=device,
        calibration=calibration,
    )


def _plain(arm: Arm, network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    if arm.precision == "int8":
        raise UserError("engine plain: precision: got 'int8', expected f32 or bf16")

    def run(clips: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=arm.precision == "bf16"):
            return network(clips)

    return run


def _contiguous(arm: Arm, network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What octvideo's engines of torch do, on contiguous maps and weights: they have channels last alone."""
    if device.type == "cpu" and load_library() is not None:
        raise UserError("layout: got 'contiguous', expected channels_last or auto: octvideo's kernel has no other")
    prepared = prepare_inference(network, device="cpu" if _compiles(arm) else device)
    if arm.precision == "bf16":
        use_bfloat16(prepared, by_kernel=False)
    prepared = prepared.to(device)
    for tensor in (*prepared.parameters(), *prepared.buffers()):
        tensor.data = tensor.data.contiguous()
    if _compiles(arm):  # inductor would change the layout by itself
        compile_module(prepared, fullgraph=True, options={"layout_optimization": False})
    return _plain(arm, prepared, device)


def _laid_out(clips: Tensor, arm: Arm, device: torch.device) -> Tensor:
    if arm.layout == "channels_last":
        clips = clips.contiguous(memory_format=torch.channels_last_3d)
    return clips.to(device)
