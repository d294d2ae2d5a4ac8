"""Devices by name, what "f32" is on them, and that work for one of several GPUs is done on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from octvideo.errors import UserError
from octvideo.inference import export
from octvideo.inference.device import computes_tf32, pick_device, precision_in_words
from octvideo.inference.export import check_scores
from octvideo.inference.model_files import load_aot
from octvideo.inference.preparation import prepared_chunks
from octvideo.video import ViewSettings
from octvideo.video.views import VideoViews

GPU = torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["tpu9", "", "cuda:x", "CUDA", "meta", "cuda:99", "xpu:9", "hpu", "privateuseone"])
def test_a_device_that_is_not_here_is_refused_in_a_line(name: str) -> None:
    with pytest.raises(UserError) as error:
        pick_device(name)
    text = str(error.value)
    assert text.startswith(f"device '{name}' can't be used here") and "expected auto, cpu" in text and "\n" not in text


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is MPS")
def test_mps_is_refused_elsewhere() -> None:
    with pytest.raises(UserError, match=r"device 'mps' can't be used here .*: expected auto, cpu"):
        pick_device("mps")


def test_devices_of_this_machine() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda")


@pytest.fixture
def tf32() -> Iterator[None]:
    """torch's flags are as they were afterwards."""
    with torch.backends.cudnn.flags(allow_tf32=True):
        yield


@pytest.mark.parametrize(
    ("capability", "allowed", "expected"), [((9, 0), True, True), ((9, 0), False, False), ((7, 5), True, False)]
)
@pytest.mark.usefixtures("tf32")
def test_f32_on_a_gpu_says_whether_it_is_tf32(
    capability: tuple[int, int], allowed: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    torch.backends.cudnn.allow_tf32 = allowed
    assert computes_tf32(GPU) is expected
    assert precision_in_words("f32", GPU) == ("f32 (convolutions in TF32)" if expected else "f32")
    assert precision_in_words("bf16", GPU) == "bf16"
    assert precision_in_words("f32", torch.device("cpu")) == "f32"


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="older torch has one flag for all of cuDNN")
@pytest.mark.usefixtures("tf32")
def test_torchs_newer_flags_are_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # of RNNs it is TF32 still: torch's older flag raises
        assert not computes_tf32(GPU)
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.parametrize(
    ("difference", "is_tf32", "refused"), [(1e-3, True, False), (1e-3, False, True), (0.1, True, True)]
)
def test_an_export_is_held_to_its_precision(
    difference: float, is_tf32: bool, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = torch.tensor([[0.0, 0.0]])
    eager = torch.tensor([[0.0, 0.0]])
    # Of two classes a logit moves its score by a quarter as much.
    exported = torch.tensor([[4 * difference, 0.0]])
    monkeypatch.setattr(export, "computes_tf32", lambda device: is_tf32)
    monkeypatch.setattr(export, "precision_in_words", lambda precision, device: precision)
    monkeypatch.setattr(export, "FileEngine", lambda *args, **kwargs: Answer(exported))
    monkeypatch.setattr(export, "build_engine", lambda *args, **kwargs: Answer(eager))
    spec = export.ModelSpec((1, 3, 4, 32, 32), "f32", torch.device("cpu"))
    with pytest.raises(UserError, match="scores differ") if refused else contextlib.nullcontext():
        check_scores(torch.nn.Identity(), clips, "aot", Path("model.pt2"), spec, None)


class Answer:
    """An engine that always gives the same logits."""

    precision = "f32"

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        return self._logits


def test_an_aot_model_is_loaded_to_its_gpu_and_runs_there(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[str] = []
    seen: list[tuple[str, list[str]]] = []

    @contextlib.contextmanager
    def on(device: str) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    def load(file: str) -> Any:
        seen.append(("load", [*current]))

        def model(clips: torch.Tensor) -> torch.Tensor:
            seen.append((f"run {clips.device}", [*current]))
            return clips

        return model

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr("torch._inductor.aoti_load_package", load)
    run, precision = load_aot("model.pt2", "f32", "cuda:1", 0)
    with FakeTensorMode():
        assert run(torch.zeros(1, 2)).device == GPU  # nobody waits: the result is there still
    assert seen == [("load", ["cuda:1"]), ("run cuda:1", ["cuda:1"])] and precision == "f32"
    seen.clear()
    run, _ = load_aot("model.pt2", "f32", "cpu", 0)
    run(torch.zeros(1, 2))
    assert seen == [("load", []), ("run cpu", [])]


@pytest.mark.parametrize(("device", "pinned"), [(torch.device("cpu"), 0), (GPU, 1)])
def test_frames_for_a_gpu_are_pinned(
    device: torch.device, pinned: int, tiny_video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def pin(views: VideoViews) -> VideoViews:
        calls.append("pin")
        return views

    monkeypatch.setattr(VideoViews, "pin_memory", pin)
    monkeypatch.setattr(VideoViews, "to", lambda views, device: calls.append(str(device)) or views)
    settings = ViewSettings(clip_frames=4, frame_stride=2, num_clips=2, num_crops=3, short_side_px=32, crop_px=32)
    chunks = list(prepared_chunks([tiny_video], settings, torch.Tensor.float, views_per_chunk=3, device=device))
    assert len(chunks) == 2 and calls == ["pin"] * pinned + [str(device)]


def test_a_model_for_a_device_that_is_not_here_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from octvideo.inference import Predictor, predictor

    monkeypatch.setattr(predictor, "read_export", lambda path: {"device": "tpu9"})
    with pytest.raises(UserError, match=f"{tmp_path} was exported for device 'tpu9': device 'tpu9' can't be used here"):
        Predictor.from_export(tmp_path)


def test_an_export_that_fails_leaves_no_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise UserError("the network can't be written")

    monkeypatch.setattr(export, "write_model", fail)
    names: dict[str, Any] = {"class_names": ["a"], "views": ViewSettings(), "mean": [0.4] * 3, "std": [0.2] * 3}
    how: dict[str, Any] = {"engine": "onnx", "source": "here", "device": torch.device("cpu"), "say": str}
    with pytest.raises(UserError, match="can't be written"):
        export.write_export(torch.nn.Identity(), tmp_path / "model", **names, **how)
    assert not (tmp_path / "model").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("engine", ["eager", "compile", "aot"])
def test_scores_on_a_gpu_are_those_of_the_cpu(engine: str, tiny_video: Path) -> None:
    from octvideo.inference import Predictor
    from octvideo.models import i3d_small

    torch.manual_seed(0)
    network = i3d_small(num_classes=3, alpha=0.25).eval()
    settings = ViewSettings(clip_frames=4, frame_stride=2, num_clips=2, num_crops=3, short_side_px=32, crop_px=32)
    last = f"cuda:{torch.cuda.device_count() - 1}"  # with several GPUs not the one that is current
    on_gpu, on_cpu = (
        Predictor(network, ["a", "b", "c"], views=settings, device=device, engine=name)
        for device, name in ((last, engine), ("cpu", "eager"))
    )
    assert on_gpu.device == torch.device(last)
    torch.testing.assert_close(on_gpu.scores(tiny_video), on_cpu.scores(tiny_video), rtol=0, atol=1e-2)
