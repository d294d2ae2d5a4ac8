"""Where networks come from: checkpoints of runs, shared networks, pytorchvideo's weights, exported models. They are
found by name, and what belongs to them beside the network is read.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from octvideo.class_names import read_class_names
from octvideo.errors import UserError
from octvideo.evaluation.scoring import Scoring
from octvideo.files import one_line
from octvideo.stores import is_remote
from octvideo.video import ViewSettings

EXPORT_FILE, EXPORT_FORMAT = "octvideo.json", 1  # what an exported folder says of its model
_OF_RUN = "checkpoints/*.ckpt"


def expanded(path: str) -> str:
    """A path as a shell takes it: `~`, `$NAME` and `${NAME}` replaced, names that are not set left as they are."""
    return os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111 (of a Path, it raises where there is no home)


def run_folder(name: str, runs_dir: str | Path = "runs") -> Path:
    """The folder of a run: its name in `runs_dir`, or a path that is absolute or begins with `runs_dir`."""
    runs, path = Path(expanded(str(runs_dir))), Path(expanded(name))
    return path if path.parts[: len(runs.parts)] == runs.parts else runs / path


def check_run_name(name: str) -> str:
    """The name, if a run can be called so and be found again.

    Raises:
        UserError: it can't.
    """
    parts = Path(name).parts
    odd = name != name.strip() or any(char < " " for char in name)
    if odd or is_remote(name) or not parts or name in ("last", "best", "/") or {"..", "checkpoints"} & set(parts):
        raise UserError(
            f"a run can't be called {name!r}: expected a name other than 'last' and 'best', or a path without '..' and "
            "'checkpoints'; give another --name"
        )
    return name


def find_runs(runs_dir: str | Path = "runs") -> list[Path]:
    """The folders with checkpoints in `runs_dir`, at any depth, through links too."""
    found, seen = [], set()
    for here, folders, _ in os.walk(expanded(str(runs_dir)), followlinks=True):
        if (real := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        if "checkpoints" in folders:
            folders.remove("checkpoints")
            found.append(Path(here))
    return found


def find_checkpoint(given: str, runs_dir: str | Path = "runs") -> Path:
    """What --ckpt means: "last" for the checkpoint written last, a run (name or folder) for its last one, a file, or
    the folder of a shared network, which hf:USER/NAME downloads.

    Raises:
        UserError: there is no checkpoint where one is looked for.
    """
    # Imported where they are needed: they bring libraries of networks, which an exported model does without.
    if given.startswith("hf:"):
        from octvideo.models.pretrained import pretrained_folder

        return pretrained_folder(given)
    if given == "last":
        runs, looked_in, pattern = find_runs(runs_dir), Path(expanded(str(runs_dir))), f"**/{_OF_RUN}"
    else:
        path, pattern = Path(expanded(given)), _OF_RUN
        folders = [folder for folder in (run_folder(given, runs_dir), path) if folder.is_dir()]
        if not folders:
            return path
        looked_in = next((folder for folder in folders if any(folder.glob(_OF_RUN))), folders[0])
        if not any(looked_in.glob(_OF_RUN)):
            from octvideo.models.shared_files import is_shared_folder

            if shared := next(filter(is_shared_folder, folders), None):
                return shared
        runs = [looked_in]
    written = (checkpoint for run in runs for checkpoint in run.glob(_OF_RUN))
    newest = max(written, key=lambda path: path.stat().st_mtime_ns, default=None)
    if newest is None:
        raise UserError(
            f"no checkpoint under {looked_in.absolute()} (looked for {pattern}): train one first, or name a checkpoint"
        )
    return newest


def network_of_checkpoint(path: str | Path) -> tuple[nn.Module, dict]:
    """The network of a checkpoint with its weights, and the arguments of `Predictor` that belong to it.

    Args:
        path: of the checkpoint, or of the folder of a shared network.

    Raises:
        UserError: no such file, or none of ours.
    """
    from octvideo.models.checkpoint import trained_network
    from octvideo.models.hub import name_of_cached
    from octvideo.models.pretrained import pretrained_network

    network, block = pretrained_network(path) if Path(path).is_dir() else trained_network(path)
    names = block["class_names"]
    try:
        views = ViewSettings() if block["views"] is None else ViewSettings.from_dict(block["views"])
        scoring = Scoring.from_dict(block.get("scoring"), num_classes=len(names))
    except (UserError, TypeError) as error:
        raise UserError(f"{path}: {one_line(error)}") from error
    settings = {"class_names": names, "views": views, "mean": block["mean"], "std": block["std"], "scoring": scoring}
    return network, {**settings, "source": name_of_cached(path)}


def network_of_pytorchvideo() -> tuple[nn.Module, dict]:
    """pytorchvideo's Kinetics-400 I3D, and the arguments of `Predictor` that belong to it.

    Raises:
        UserError: its weights are neither in the cache nor to be had from the network.
    """
    from octvideo.models import i3d_r50  # first: it imports pytorchvideo without a warning
    from octvideo.models.weights import load_weights, read_weights

    try:
        weights = read_weights("pytorchvideo:i3d_r50")
    except UserError as error:
        raise UserError(
            f"no weights given, and {error}. Give --ckpt PATH (or --ckpt last for the newest of your own)"
        ) from error
    network = i3d_r50(num_classes=400, alpha=0.0)
    load_weights(network, weights, head="strict")
    assert weights.pixels is not None
    pixels = {"mean": weights.pixels.mean, "std": weights.pixels.std}
    settings = {"class_names": read_class_names("kinetics400"), "views": ViewSettings(), **pixels}
    return network.eval(), {**settings, "source": f"pytorchvideo's Kinetics-400 I3D ({weights.source})"}


def read_export(folder: str | Path) -> dict[str, Any]:
    """What octvideo.json in the folder of an exported model holds; see octvideo/inference/export.py.

    Raises:
        UserError: there is none, or it is something else.
    """
    file = Path(folder) / EXPORT_FILE
    if not file.is_file():
        raise UserError(f"no exported model in {folder}: looked for {EXPORT_FILE}; octvideo export writes one")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        found = settings["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} can't be read: {error!r}") from error
    if found != EXPORT_FORMAT:
        raise UserError(f"{file} has format {found}, this octvideo reads {EXPORT_FORMAT}: export the model again")
    return settings
