"""OpenVINO on the CPU: the fastest engine in bf16 and int8, where the CPU has units for them."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.files import one_line
from octvideo.inference.engines.engine import in_batches, needs
from octvideo.octave.kernel.layout import export_form

log = logging.getLogger("octvideo.inference")


def write_openvino(
    network: nn.Module, path: Path, example_shape: tuple[int, ...], *, precision: str, calibration: Tensor | None
) -> None:
    """Writes a network as .xml and .bin.

    It is converted straight from torch.export: as fast a model as by way of ONNX, and one library less. Weights stay
    float32 in the file unless they are int8: half of the bytes (compress_to_fp16) would cost 1e-3 in the scores.

    Args:
        network: in evaluation mode.
        path: of the .xml.
        example_shape: (N, 3, T, H, W).
        precision: "f32" and "bf16" give the same file; "int8" is quantised after training.
        calibration: for int8: typical normalised clips, float32 (M, 3, T, H, W).

    Raises:
        UserError: a library is missing, calibration clips are, or OpenVINO can't convert the network.
    """
    openvino = needs("openvino", "openvino")
    if precision == "int8" and (calibration is None or not len(calibration)):
        raise UserError(
            "int8 needs typical clips to choose its scales from: octvideo export --calibrate VIDEO|FOLDER ..."
        )
    try:
        with torch.no_grad(), export_form("unfolded"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(network, (torch.zeros(example_shape),))
            model = openvino.convert_model(exported)
    except Exception as error:  # export and OpenVINO have many
        raise UserError(f"OpenVINO can't convert this network ({type(error).__name__}: {one_line(error)})") from error
    if precision == "int8":
        assert calibration is not None
        model = _quantise(model, calibration, example_shape[0])
    openvino.save_model(model, str(path), compress_to_fp16=False)


def _quantise(model: Any, calibration: Tensor, size: int) -> Any:
    nncf = needs("nncf", "int8")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    # Whole batches: what is missing is taken from the start, so that no empty clip moves a scale.
    missing = -len(calibration) % size
    clips = torch.cat([calibration, calibration[torch.arange(missing) % len(calibration)]])
    batches = [batch.contiguous().numpy() for batch in clips.split(size)]
    with contextlib.redirect_stdout(sys.stderr):  # nncf's progress; a tool's output is its result
        return nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches))


class OpenVinoEngine:
    """A model of OpenVINO on the CPU; see `Engine`.

    Args:
        path: of the .xml.
        shape: that it was written for, (N, 3, T, H, W).
        precision: "f32", "bf16", or "int8" where the file is quantised.
        num_threads: of the CPU; None is all cores.

    Raises:
        UserError: openvino is missing, or can't load the file.
    """

    name = "openvino"

    def __init__(
        self, path: Path, shape: tuple[int, ...], *, precision: str = "f32", num_threads: int | None = None
    ) -> None:
        openvino = needs("openvino", "openvino")
        self.views_per_call: int | None = shape[0]
        # One clip after another, each on all threads: the choice for latency. Without the hint some CPUs take bf16.
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        options["INFERENCE_PRECISION_HINT"] = "bf16" if precision == "bf16" else "f32"
        if num_threads:
            options["INFERENCE_NUM_THREADS"] = num_threads
        try:
            compiled = openvino.compile_model(str(path), "CPU", options)
        except Exception as error:  # RuntimeErrors of C++
            raise UserError(f"OpenVINO can't load {path} ({one_line(error)})") from error
        self.precision = precision
        if precision == "bf16" and compiled.get_property("INFERENCE_PRECISION_HINT") != openvino.Type.bf16:
            log.warning("this CPU has no bf16 units: OpenVINO computes in f32")
            self.precision = "f32"
        self._request = compiled.create_infer_request()

    def _run(self, clips: Tensor) -> Tensor:
        self._request.infer([clips.numpy()], share_inputs=True)
        return torch.from_numpy(self._request.get_output_tensor(0).data.copy())

    def __call__(self, clips: Tensor) -> Tensor:
        return in_batches(self._run, clips.cpu().contiguous(), self.views_per_call or 1)
