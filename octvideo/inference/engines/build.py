"""A network becomes an engine. Those that have files go through one: what is measured is what is exported."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from octvideo.inference.engines.engine import Engine, check_choice, check_cpu
from octvideo.inference.engines.onnx_runtime import OnnxEngine, write_onnx
from octvideo.inference.engines.openvino_runtime import OpenVinoEngine, write_openvino
from octvideo.inference.engines.torch_engines import AotEngine, EagerEngine, write_aot
from octvideo.octave import prepare_inference

# Engines whose models are files, and the file that names them.
MODEL_FILES = {"aot": "model.pt2", "onnx": "model.onnx", "openvino": "model.xml"}


def build_engine(
    name: str,
    network: nn.Module,
    *,
    example_shape: tuple[int, ...],
    precision: str = "f32",
    num_threads: int | None = None,
    device: str | torch.device = "cpu",
    calibration: Tensor | None = None,
) -> Engine:
    """An engine for a network in memory, which is left as it is.

    Args:
        name: "eager", "compile", "aot", "onnx" or "openvino".
        network: clips (N, 3, T, H, W) to logits (N, K).
        example_shape: (N, 3, T, H, W); all engines but eager are made for it (more clips go batch by batch).
        precision: "f32", "bf16" or "int8"; see `PRECISIONS`.
        num_threads: of the CPU. Engines of torch set it for the whole process; None leaves it.
        device: to compute on; onnx and openvino take "cpu" only.
        calibration: for int8: typical normalised clips, float32 (M, 3, T, H, W).

    Raises:
        UserError: no such engine or precision, a missing library, or a network that the engine can't take.
    """
    check_choice(name, precision)
    device = torch.device(device)
    if name in MODEL_FILES:
        with tempfile.TemporaryDirectory(prefix="octvideo-") as folder:
            file = Path(folder) / MODEL_FILES[name]
            write_model(name, network, file, example_shape, precision=precision, device=device, calibration=calibration)
            return load_model(name, file, example_shape, precision=precision, num_threads=num_threads, device=device)
    if num_threads:
        torch.set_num_threads(num_threads)
    return EagerEngine(
        prepare_inference(network), example_shape, precision=precision, device=device, compiled=name == "compile"
    )


def write_model(
    name: str,
    network: nn.Module,
    file: Path,
    example_shape: tuple[int, ...],
    *,
    precision: str = "f32",
    device: str | torch.device = "cpu",
    calibration: Tensor | None = None,
) -> None:
    """Writes a network as the file that `load_model` reads; see `build_engine`.

    Raises:
        UserError: as `build_engine`.
    """
    check_choice(name, precision)
    device = torch.device(device)
    prepared = prepare_inference(network)
    if name == "aot":
        write_aot(prepared, file, example_shape, precision=precision, device=device)
        return
    check_cpu(name, device)
    prepared = prepared.cpu()
    if name == "onnx":
        write_onnx(prepared, file, example_shape)
    else:
        write_openvino(prepared, file, example_shape, precision=precision, calibration=calibration)


def load_model(
    name: str,
    file: Path,
    shape: tuple[int, ...],
    *,
    precision: str = "f32",
    num_threads: int | None = None,
    device: str | torch.device = "cpu",
) -> Engine:
    """The engine of a model file.

    Args:
        name: "aot", "onnx" or "openvino".
        file: that `write_model` wrote.
        shape: that it was written for, (N, 3, T, H, W).
        precision: that it was written in; a file of OpenVINO may be f32 and computed in bf16.
        num_threads: of the CPU; see `build_engine`.
        device: to compute on; for aot the one it was written for.

    Raises:
        UserError: a missing library, or a file that can't be loaded.
    """
    check_choice(name, precision)
    device = torch.device(device)
    if name == "aot":
        if num_threads:
            torch.set_num_threads(num_threads)
        return AotEngine(file, shape, precision=precision, device=device)
    check_cpu(name, device)
    if name == "onnx":
        return OnnxEngine(file, shape, num_threads=num_threads)
    return OpenVinoEngine(file, shape, precision=precision, num_threads=num_threads)
