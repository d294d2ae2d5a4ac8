"""Engines that run a network in memory: eager PyTorch, and torch.compile."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from octvideo.compiling import compile_module
from octvideo.errors import UserError
from octvideo.files import one_line
from octvideo.inference.engine import ModelSpec, calibration_clips, in_batches
from octvideo.octave import fuse_convolutions
from octvideo.octave.fused.prepare import use_bfloat16
from octvideo.octave.fused.quantize import quantize
from octvideo.octave.fused.sequence import FusedSequence
from octvideo.octave.kernel.formats import FORMATS
from octvideo.octave.kernel.fused_conv import has_format
from octvideo.octave.kernel.layout import channels_last
from octvideo.octave.kernel.library import bf16_pays, load_library

log = logging.getLogger("octvideo.inference")


class InPrecision(nn.Module):
    """A network that computes in the precision asked for between float32 clips and float32 logits.

    bf16 is autocast, since torch pools no bf16 clips on a CPU; convolutions and products hold their weights in bf16
    beforehand, so that they are not converted at each call.

    Args:
        by_kernel: octvideo's own kernel computes what it has, where the network is on a CPU.
    """

    def __init__(self, network: nn.Module, spec: ModelSpec, *, by_kernel: bool = True) -> None:
        super().__init__()
        self.device_type, self.is_bf16 = spec.device.type, spec.precision == "bf16"
        if self.is_bf16:
            use_bfloat16(network, by_kernel=by_kernel and spec.device.type == "cpu")
        self.network = network.to(spec.device).eval()

    def forward(self, clips: Tensor) -> Tensor:
        clips = channels_last(clips)
        if not self.is_bf16:
            return self.network(clips)
        with torch.autocast(self.device_type, torch.bfloat16):
            logits = self.network(clips)
        return logits.float()


def in_best_precision(spec: ModelSpec, engine: str) -> ModelSpec:
    """The same; float32 where bf16 is asked for on a CPU whose products are no faster in it. A log line says so."""
    if spec.precision != "bf16" or spec.device.type != "cpu" or load_library() is None or bf16_pays():
        return spec
    log.warning("this CPU multiplies no faster in bf16 than in f32: %s computes in f32", engine)
    return replace(spec, precision="f32")


class EagerEngine:
    """PyTorch as it is; see `Engine`."""

    name = "eager"
    views_per_call: int | None = None
    note = ""  # on the precision, for people

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        spec = in_best_precision(spec, self.name)
        self.precision, self.device = spec.precision, spec.device
        if spec.precision == "int8":
            self.note = _quantize_kernel(network, spec)
        self._run = InPrecision(network, spec)

    def __call__(self, clips: Tensor) -> Tensor:
        with torch.inference_mode():
            return self._run(clips.to(self.device))


def _quantize_kernel(network: nn.Module, spec: ModelSpec) -> str:
    """Lets a prepared network compute in int8 by octvideo's kernel; returns how its classes compare with those of f32.

    Raises:
        UserError: the kernel has no int8 here, no layer of the network is the kernel's, there are no clips, or a map is
            not finite on them.
    """
    if not has_format(FORMATS["int8"]) or spec.device.type != "cpu":
        raise UserError(
            "engine eager computes int8 on CPUs with AVX512-VNNI or AMX by octvideo's kernel, which is not to be had "
            "here: --engine openvino, or --precision f32"
        )
    if not any(isinstance(module, FusedSequence) for module in network.modules()):
        raise UserError("octvideo's kernel has no layer of this network: no int8 by engine eager. --precision f32")
    clips = calibration_clips(spec)
    with torch.inference_mode():
        expected = torch.cat([network(clip) for clip in clips]).argmax(1)
        try:
            quantize(network, clips)
        except ValueError as error:
            raise UserError(f"int8: {one_line(error)}") from error
        same = int((torch.cat([network(clip) for clip in clips]).argmax(1) == expected).sum())
    return f"calibrated on {len(clips)} clips; the same class as in f32 on {same} of them"


class CompiledEngine:
    """PyTorch under torch.compile, for one batch size; see `Engine`. On a CPU weights are frozen into the code.

    Raises:
        UserError: the network can't be compiled here.
    """

    name = "compile"
    views_per_call: int | None

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        spec = in_best_precision(spec, self.name)
        self.precision, self.device, self.views_per_call = spec.precision, spec.device, spec.shape[0]
        whole = InPrecision(network, spec)
        fuse_convolutions(whole)
        compile_module(whole, fullgraph=True, options=inductor_options(spec.device))
        self._run = whole
        # Compiled now, so that the first video does not pay for it, and a machine without a compiler says so at once.
        try:
            self(torch.zeros(spec.shape))
        except Exception as error:  # dynamo and inductor have many
            by_compiler = spec.device.type == "cpu" and isinstance(error, torch._dynamo.exc.BackendCompilerFailed)
            needed = "it needs a C++ compiler (g++ or clang) on a CPU. " if by_compiler else ""
            raise UserError(
                f"torch.compile can't compile this network here ({type(error).__name__}: {one_line(error)}); "
                f"{needed}--engine eager compiles nothing"
            ) from error

    def __call__(self, clips: Tensor) -> Tensor:
        with torch.no_grad():  # frozen weights need it
            # The layout is changed here, by faster code than inductor has (see `channels_last`).
            return in_batches(
                lambda batch: self._run(channels_last(batch)), clips.to(self.device), self.views_per_call or 1
            )


def inductor_options(device: torch.device) -> dict[str, Any]:
    """By freezing, convolutions on CPUs get oneDNN's packed weights and fused activations."""
    return {"freezing": True} if device.type == "cpu" else {}
