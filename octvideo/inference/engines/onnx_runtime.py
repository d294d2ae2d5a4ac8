"""ONNX Runtime on the CPU: wide reach (every system and language it has), float32."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.files import one_line
from octvideo.inference.engines.engine import in_batches, needs


def write_onnx(network: nn.Module, path: Path, example_shape: tuple[int, ...]) -> None:
    """Writes a network as one .onnx file, with inputs "clips" and outputs "logits" of fixed shapes.

    Raises:
        UserError: onnx or onnxscript is missing, or the network has what ONNX has not.
    """
    for module in ("onnx", "onnxscript"):
        needs(module, "onnx")
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (torch.zeros(example_shape),),
                dynamo=True,
                input_names=["clips"],
                output_names=["logits"],
                external_data=False,
                verbose=False,
            )
            assert program is not None
            program.save(str(path), external_data=False)
    except Exception as error:  # torch.onnx has no common type
        raise UserError(f"the network can't be written as ONNX ({type(error).__name__}: {one_line(error)})") from error
    finally:
        exporter.setLevel(level)


class OnnxEngine:
    """A .onnx file in ONNX Runtime; see `Engine`.

    Args:
        path: of the file.
        shape: that it was written for, (N, 3, T, H, W).
        num_threads: of the CPU; None is all cores.

    Raises:
        UserError: onnxruntime is missing, or can't read the file.
    """

    name, precision = "onnx", "f32"

    def __init__(self, path: Path, shape: tuple[int, ...], *, num_threads: int | None = None) -> None:
        runtime = needs("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = num_threads or 0
        options.log_severity_level = 3
        self.views_per_call: int | None = shape[0]
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no public base
            raise UserError(f"ONNX Runtime can't load {path} ({one_line(error)})") from error

    def _run(self, clips: Tensor) -> Tensor:
        return torch.from_numpy(self._session.run(["logits"], {"clips": clips.numpy()})[0])

    def __call__(self, clips: Tensor) -> Tensor:
        return in_batches(self._run, clips.cpu().contiguous(), self.views_per_call or 1)
