"""A folder that serves by itself: the model of one engine, everything its scores depend on, and a program.

octvideo.json   classes, view settings, mean and deviation, source, versions, the check that was made
model.*         the engine's files: `EngineEntry.files`
classify.py     names the actions in videos: needs numpy, PyAV and the engine, not octvideo
engine.py       how classify.py loads the model: the source of `EngineEntry.load`
"""

from __future__ import annotations

import contextlib
import inspect
import platform
import shutil
import textwrap
import time
from collections.abc import Callable, Sequence
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octvideo._version import __version__
from octvideo.errors import UserError
from octvideo.evaluation.scoring import Scoring
from octvideo.files import json_text
from octvideo.inference.checkpoint import EXPORT_FILE, EXPORT_FORMAT
from octvideo.inference.device import computes_tf32, precision_in_words
from octvideo.inference.engine import EngineEntry, ModelSpec
from octvideo.inference.engines import ENGINES, FileEngine, build_engine, check_choice, file_engines, write_model
from octvideo.inference.predictor import choose_views_per_call, clip_shape
from octvideo.video import ViewSettings

PROGRAM, LOADER = "classify.py", "engine.py"


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
    scoring: Scoring = Scoring(),  # noqa: B008 (frozen)
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
        class_names, views, mean, std, source, scoring: see `Predictor`.
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
    entry = check_choice(engine, precision)
    if not entry.files:
        raise UserError(f"engine: got '{engine}', expected one with model files: {', '.join(file_engines())}")
    folder = Path(folder)
    _make_free(folder, overwrite)
    shape = clip_shape(views, views_per_call or choose_views_per_call(views, device))
    spec = ModelSpec(shape, precision, device, calibration)
    if check_clips is None:
        check_clips = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model = folder / entry.files[0]
    say(f"writing {model} ...")
    start = time.perf_counter()
    try:
        write_model(engine, network, model, spec)
    except UserError:
        with contextlib.suppress(OSError):
            folder.rmdir()  # unless something is in it
        raise
    written = time.perf_counter() - start
    check = check_scores(network, check_clips, engine, model, spec, num_threads, scoring)
    settings = {
        "format": EXPORT_FORMAT,
        "octvideo": __version__,
        "engine": engine,
        "library": entry.library,
        "precision": precision,
        "model": model.name,
        "input_shape": list(shape),
        "device": device.type,
        "class_names": list(class_names),
        "views": views.as_dict(),
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "scoring": scoring.as_dict(),
        "source": source,
        "versions": {name: version(name) for name in ("torch", *entry.packages) if any(distributions(name=name))},
        "machine": f"{platform.system()} {platform.machine()}",
        "write_seconds": round(written, 1),
        "check": check,
    }
    shutil.copyfile(Path(__file__).parent / "standalone" / PROGRAM, folder / PROGRAM)
    (folder / LOADER).write_text(_loader_source(entry), encoding="utf-8")
    # Last: a folder with it is whole.
    (folder / EXPORT_FILE).write_text(json_text(settings, indent=2) + "\n", encoding="utf-8")
    return settings


def _loader_source(entry: EngineEntry) -> str:
    """A module whose `load` is the engine's."""
    assert entry.load is not None
    return (
        f'"""The model of engine {entry.name} as a function (octvideo {__version__})."""\n\n'
        f"from __future__ import annotations\n\n\n{textwrap.dedent(inspect.getsource(entry.load))}\n\n"
        "# (file, precision, device, threads) to: clips (N, 3, T, H, W) to logits (N, K), and the precision of these.\n"
        f"load = {entry.load.__name__}\n"
    )


def _make_free(folder: Path, overwrite: bool) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / EXPORT_FILE).is_file():
            raise UserError(f"{folder} holds other files: give another folder")
        if not overwrite:
            raise UserError(f"{folder} already holds a model: add --overwrite, or give another folder")
        models = [name for entry in ENGINES.values() for name in entry.files]
        for name in (EXPORT_FILE, PROGRAM, LOADER, *models):
            (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def check_scores(
    network: nn.Module,
    clips: Tensor,
    engine: str,
    model: Path,
    spec: ModelSpec,
    num_threads: int | None,
    scoring: Scoring = Scoring(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """Compares scores with the ordinary eager network's, and says how far apart they are.

    Raises:
        UserError: in f32, further than 1e-4, or 1e-2 in TF32; or they are not finite.
    """
    start = time.perf_counter()
    exported = FileEngine(engine, model, spec, num_threads=num_threads)
    load_seconds = time.perf_counter() - start
    start = time.perf_counter()
    logits = exported(clips).cpu()
    seconds = (time.perf_counter() - start) / len(clips)
    eager = build_engine("eager", network, example_shape=spec.shape, device=spec.device)(clips).cpu()
    if not (logits.isfinite().all() and eager.isfinite().all()):
        raise UserError(f"{model}: logits of the network are not finite in {exported.precision}; not to be used")
    difference = float((scoring.of_views(logits, 1) - scoring.of_views(eager, 1)).abs().max())
    agreeing = int((logits.argmax(1) == eager.argmax(1)).sum())
    computed_in = precision_in_words(exported.precision, spec.device)
    # In TF32 both round, each in its own algorithms.
    allowed = 1e-2 if computes_tf32(spec.device) else 1e-4
    if exported.precision == "f32" and not difference <= allowed:
        raise UserError(
            f"{model}: scores differ from eager PyTorch's by {difference:.2g} in {computed_in}, expected {allowed:.0e} "
            "at most; not to be used"
        )
    return {
        "clips": len(clips),
        "max_score_difference": difference,
        "max_logit_difference": float((logits - eager).abs().max()),
        "logit_range": float(eager.max() - eager.min()),
        "same_best_class": agreeing,
        "computed_in": computed_in,
        "load_seconds": round(load_seconds, 2),
        "seconds_per_view": round(seconds, 4),
    }
