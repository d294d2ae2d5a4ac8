"""Engines made of torch alone: eager, torch.compile, and AOTInductor packages (.pt2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.files import one_line
from octvideo.inference.engines.engine import in_batches
from octvideo.octave import fuse_convolutions
from octvideo.octave.fused.conv import PreparedConv
from octvideo.octave.kernel.layout import channels_last, export_form


class InPrecision(nn.Module):
    """A network that computes in `precision` between float32 clips and float32 logits.

    bf16 is autocast, since torch pools no bf16 clips on a CPU; convolutions and products hold their weights in bf16
    beforehand, so that they are not converted at each call.
    """

    def __init__(self, network: nn.Module, precision: str, device: torch.device) -> None:
        super().__init__()
        self.device_type, self.is_bf16 = device.type, precision == "bf16"
        if self.is_bf16:
            for module in network.modules():
                if isinstance(module, nn.modules.conv._ConvNd | PreparedConv | nn.Linear):
                    module.to(torch.bfloat16)
        self.network = network.to(device).eval()

    def forward(self, clips: Tensor) -> Tensor:
        clips = channels_last(clips)
        if not self.is_bf16:
            return self.network(clips)
        with torch.autocast(self.device_type, torch.bfloat16):
            logits = self.network(clips)
        return logits.float()


class EagerEngine:
    """PyTorch as it is, or under torch.compile; see `Engine`.

    Args:
        network: in evaluation mode, not used elsewhere.
        example_shape: (N, 3, T, H, W); what is compiled is compiled for it.
        precision: "f32" or "bf16".
        device: to compute on.
        compiled: by inductor; on a CPU its weights are frozen into the code.
    """

    def __init__(
        self,
        network: nn.Module,
        example_shape: tuple[int, ...],
        *,
        precision: str,
        device: torch.device,
        compiled: bool = False,
    ) -> None:
        self.name, self.precision, self.device = ("compile" if compiled else "eager"), precision, device
        self.views_per_call = example_shape[0] if compiled else None
        self._run: Any = InPrecision(network, precision, device)
        if compiled:
            fuse_convolutions(self._run)
            # Freezing is what gives convolutions on CPUs oneDNN's packed weights and fused activations.
            options: Any = {"freezing": True} if device.type == "cpu" else None
            self._run = torch.compile(self._run, fullgraph=True, options=options)
            self._compile_now(example_shape)

    def _compile_now(self, shape: tuple[int, ...]) -> None:
        """So that the first video does not pay for it, and a machine without a compiler says so at once."""
        try:
            self(torch.zeros(shape))
        except Exception as error:  # dynamo and inductor have many
            raise UserError(
                f"torch.compile can't compile this network here ({type(error).__name__}: {one_line(error)}); "
                "it needs a C++ compiler (g++ or clang) on a CPU. --engine eager needs none"
            ) from error

    def __call__(self, clips: Tensor) -> Tensor:
        clips = clips.to(self.device)
        if self.views_per_call is None:
            with torch.inference_mode():
                return self._run(clips)
        with torch.no_grad():  # what freezes weights
            # The layout is changed here, by faster code than inductor has (see there).
            return in_batches(lambda batch: self._run(channels_last(batch)), clips, self.views_per_call)


def write_aot(
    network: nn.Module, path: Path, example_shape: tuple[int, ...], *, precision: str, device: torch.device
) -> None:
    """Compiles a network to a package that torch loads without Python code of ours.

    It holds machine code for this kind of CPU or GPU, and is written for one batch size.

    Raises:
        UserError: the network can't be compiled here.
    """
    from torch._inductor import aoti_compile_and_package

    whole = InPrecision(network, precision, device)
    options: dict[str, Any] = {"freezing": True} if device.type == "cpu" else {}
    try:
        # Unfolded: the exported graph fixes how frames fold, and inductor then chooses another layout.
        with torch.no_grad(), export_form("unfolded"):
            exported = torch.export.export(whole, (torch.zeros(example_shape, device=device),))
            aoti_compile_and_package(exported, package_path=str(path), inductor_configs=options)
    except Exception as error:  # export and inductor have many
        raise UserError(
            f"AOTInductor can't compile this network here ({type(error).__name__}: {one_line(error)}); "
            "it needs a C++ compiler (g++ or clang), as engines onnx and openvino do not"
        ) from error


class AotEngine:
    """A package of AOTInductor; see `Engine`.

    Raises:
        UserError: it can't be loaded.
    """

    name = "aot"
    views_per_call: int | None

    def __init__(self, path: Path, shape: tuple[int, ...], *, precision: str, device: torch.device) -> None:
        from torch._inductor import aoti_load_package

        self.precision, self.device, self.views_per_call = precision, device, shape[0]
        try:
            self._run = aoti_load_package(str(path))
        except Exception as error:  # a RuntimeError of C++, mostly
            raise UserError(
                f"{path} can't be loaded ({one_line(error)}): export it again on this machine with this torch "
                f"({torch.__version__})"
            ) from error

    def __call__(self, clips: Tensor) -> Tensor:
        return in_batches(self._run, clips.to(self.device).contiguous(), self.views_per_call or 1)
