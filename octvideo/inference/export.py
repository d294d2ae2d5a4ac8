"""A folder that serves by itself: the model of one engine, everything its scores depend on, and a program.

octvideo.json   classes, view settings, mean and deviation, source, versions, the check that was made
model.pt2 | model.onnx | model.xml, model.bin
classify.py     names the actions in videos: needs numpy, PyAV and the engine, not octvideo
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octvideo._version import __version__
from octvideo.errors import UserError
from octvideo.files import json_text
from octvideo.inference.engines import MODEL_FILES, build_engine, check_choice, load_model, write_model
from octvideo.inference.predictor import Predictor, choose_views_per_call, clip_shape, pick_device
from octvideo.video import ViewSettings

SETTINGS_FILE, PROGRAM = "octvideo.json", "classify.py"
_FORMAT = 1
_VERSIONS_OF = {
    "aot": ("torch",),
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "openvino": ("torch", "openvino", "nncf"),
}


def write_export(
    network: nn.Module,
    folder: str | Path,
    *,
    engine: str,
    precision: str = "f32",
    class_names: Sequence[str],
    views: ViewSettings,
    mean: Sequence[float],
    std: Sequence[float],
    source: str,
    device: torch.device,
    views_per_call: int | None = None,
    num_threads: int | None = None,
    calibration: Tensor | None = None,
    check_clips: Tensor | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Writes the folder, loads the model from it, and compares its scores with eager PyTorch's.

    Args:
        network: clips (N, 3, T, H, W) to logits (N, K), left as it is.
        folder: made here.
        engine, precision, num_threads, calibration: see `build_engine`.
        class_names, views, mean, std, source: see `Predictor`.
        device: that the model is made for.
        views_per_call: the batch size of the model; None is `choose_views_per_call`.
        check_clips: normalised clips to compare on, float32 (M, 3, T, H, W); None is noise.
        overwrite: whether `folder` may hold another export.
        say: told what takes time.

    Returns:
        What octvideo.json holds.

    Raises:
        UserError: as `build_engine`; the folder is in use; or the engine's scores are not eager's.
    """
    check_choice(engine, precision)
    if engine not in MODEL_FILES:
        raise UserError(f"engine: got '{engine}', expected one with model files: {', '.join(MODEL_FILES)}")
    folder = Path(folder)
    _make_free(folder, overwrite)
    shape = clip_shape(views, views_per_call or choose_views_per_call(views, device))
    if check_clips is None:
        check_clips = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    say(f"writing {folder / MODEL_FILES[engine]} ...")
    model = folder / MODEL_FILES[engine]
    write_model(engine, network, model, shape, precision=precision, device=device, calibration=calibration)
    written = time.perf_counter() - start
    check = _check(network, check_clips, engine, model, shape, precision, num_threads, device)
    settings = {
        "format": _FORMAT,
        "octvideo": __version__,
        "engine": engine,
        "precision": precision,
        "model": model.name,
        "input_shape": list(shape),
        "device": device.type,
        "class_names": list(class_names),
        "views": views.as_dict(),
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "source": source,
        "versions": _versions(engine),
        "machine": f"{platform.system()} {platform.machine()}",
        "write_seconds": round(written, 1),
        "check": check,
    }
    shutil.copyfile(Path(__file__).parent / "standalone" / PROGRAM, folder / PROGRAM)
    # Last: a folder with it is whole.
    (folder / SETTINGS_FILE).write_text(json_text(settings, indent=2) + "\n", encoding="utf-8")
    return settings


def _make_free(folder: Path, overwrite: bool) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / SETTINGS_FILE).is_file():
            raise UserError(f"{folder} holds other files: give another folder")
        if not overwrite:
            raise UserError(f"{folder} already holds a model: add --overwrite, or give another folder")
        for name in (SETTINGS_FILE, PROGRAM, *MODEL_FILES.values(), "model.bin"):
            (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def _check(
    network: nn.Module,
    clips: Tensor,
    engine: str,
    model: Path,
    shape: tuple[int, ...],
    precision: str,
    num_threads: int | None,
    device: torch.device,
) -> dict[str, Any]:
    """Compares softmax scores with the ordinary eager network's, and says how far apart they are.

    Raises:
        UserError: in f32, further than 1e-4; or they are not finite.
    """
    start = time.perf_counter()
    exported = load_model(engine, model, shape, precision=precision, num_threads=num_threads, device=device)
    load_seconds = time.perf_counter() - start
    start = time.perf_counter()
    logits = exported(clips).cpu()
    seconds = (time.perf_counter() - start) / len(clips)
    eager = build_engine("eager", network, example_shape=shape, device=device)(clips).cpu()
    if not (logits.isfinite().all() and eager.isfinite().all()):
        raise UserError(f"{model}: logits of the network are not finite in {exported.precision}; not to be used")
    difference = float((logits.softmax(1) - eager.softmax(1)).abs().max())
    agreeing = int((logits.argmax(1) == eager.argmax(1)).sum())
    if exported.precision == "f32" and not difference <= 1e-4:
        raise UserError(
            f"{model}: scores differ from eager PyTorch's by {difference:.2g}, expected 1e-4 at most; not to be used"
        )
    return {
        "clips": len(clips),
        "max_score_difference": difference,
        "max_logit_difference": float((logits - eager).abs().max()),
        "logit_range": float(eager.max() - eager.min()),
        "same_best_class": agreeing,
        "computed_in": exported.precision,
        "load_seconds": round(load_seconds, 2),
        "seconds_per_view": round(seconds, 4),
    }


def _versions(engine: str) -> dict[str, str]:
    found = {}
    for name in _VERSIONS_OF[engine]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read_settings(folder: str | Path) -> dict[str, Any]:
    """What octvideo.json in `folder` holds.

    Raises:
        UserError: there is none, or it is something else.
    """
    file = Path(folder) / SETTINGS_FILE
    if not file.is_file():
        raise UserError(f"no exported model in {folder}: looked for {SETTINGS_FILE}; octvideo export writes one")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        found = settings["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} can't be read: {error!r}") from error
    if found != _FORMAT:
        raise UserError(f"{file} has format {found}, this octvideo reads {_FORMAT}: export the model again")
    return settings


def load_export(folder: str | Path, *, device: str = "auto", num_threads: int | None = None) -> Predictor:
    """See `Predictor.from_export`."""
    settings = read_settings(folder)
    made_for = settings["device"]
    chosen = pick_device(made_for if device == "auto" else device)
    if chosen.type != made_for:
        raise UserError(f"{folder} was exported for device '{made_for}', got '{chosen}': export it for the other, too")
    file = Path(folder) / settings["model"]
    if not file.is_file():
        raise UserError(f"{folder} is not whole: {file.name} is missing; export the model again")
    engine = load_model(
        settings["engine"],
        file,
        tuple(settings["input_shape"]),
        precision=settings["precision"],
        num_threads=num_threads,
        device=chosen,
    )
    return Predictor(
        engine,
        settings["class_names"],
        views=ViewSettings.from_dict(settings["views"]),
        mean=settings["mean"],
        std=settings["std"],
        source=f"{settings['source']} ({folder})",
    )
