"""What is known of the network that a card is about: read from a run, a checkpoint or an exported model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from octvideo.class_names import ClassIndex
from octvideo.data.manifest import read_records
from octvideo.data.records import VideoList
from octvideo.errors import UserError
from octvideo.evaluation.scores import VideoScores
from octvideo.evaluation.scoring import Scoring
from octvideo.files import one_line, read_text
from octvideo.inference.checkpoint import EXPORT_FILE, find_checkpoint, read_export, run_folder
from octvideo.models.checkpoint import read_checkpoint, trained_network
from octvideo.stores import shown
from octvideo.video import FrameNames, ViewSettings

_TESTED = "metrics_test.json"


@dataclass(frozen=True)
class Facts:
    """Of one network.

    Args:
        name: of the run, or of the exported model's folder.
        class_names: K names.
        views: how videos are cut.
        mean, std: per channel, of pixels scaled to [0, 1].
        network: with its weights; None of an exported model.
        block: of the checkpoint; empty for an exported model.
        saved: when the checkpoint was saved, in words.
        config: of the training; empty where it is not known.
        scores: of the test, None where there was none.
        test: what the test wrote beside them.
        doubts: why scores may be of other weights, in sentences.
        export: what octvideo.json says.
        conversion: lines of the report of octvideo convert, where it made the network.
    """

    name: str
    class_names: list[str]
    views: ViewSettings
    mean: tuple[float, ...]
    std: tuple[float, ...]
    network: nn.Module | None = None
    block: Mapping[str, Any] = field(default_factory=dict)
    saved: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    scores: VideoScores | None = None
    test: Mapping[str, Any] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    export: Mapping[str, Any] = field(default_factory=dict)
    conversion: tuple[str, ...] = ()

    @property
    def scoring(self) -> Scoring:
        """What makes scores of logits."""
        held = (self.export or self.block).get("scoring")
        return Scoring.from_dict(held, num_classes=len(self.class_names))

    @property
    def known_scores(self) -> VideoScores | None:
        """Those with a known label, where there are any."""
        known = None if self.scores is None else self.scores.known()
        return known if known is not None and len(known) else None

    def of_config(self, part: str, key: str) -> Any:
        """A key of the training's config, such as ("data", "train"); None where it is not known."""
        section = self.config.get(part)
        return section.get(key) if isinstance(section, dict) else None


def read_facts(given: str, runs_dir: str) -> tuple[Facts, Path]:
    """What is known of a run (by name, folder or checkpoint) or of an exported model, and the folder of it.

    Raises:
        UserError: there is none, or it can't be read.
    """
    folder = next((place for place in (Path(given), run_folder(given, runs_dir)) if place.is_dir()), None)
    if folder is not None and (folder / EXPORT_FILE).is_file():
        return _of_export(folder), folder
    if given == "last" or folder is None:
        checkpoint = find_checkpoint(given, runs_dir)
        folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
        return _of_checkpoint(checkpoint, folder), folder
    checkpoint = _tested(folder) or next(
        (file for name in ("best", "last") if (file := folder / f"checkpoints/{name}.ckpt").is_file()), None
    ) or find_checkpoint(str(folder), runs_dir)  # fmt: skip
    if checkpoint.is_dir():
        raise UserError(f"{folder} is a network to share and has its card; a run or an exported model is expected")
    return _of_checkpoint(checkpoint, folder), folder


def _tested(folder: Path) -> Path | None:
    """The checkpoint of the run that its test has scored: the card is of these weights."""
    recorded = Path(str(_json(folder / _TESTED).get("checkpoint", "")))
    here = folder / "checkpoints" / recorded.name
    return here if recorded.suffix == ".ckpt" and here.is_file() and _is_of(recorded, folder) else None


def _is_of(checkpoint: Path, folder: Path) -> bool:
    """Whether a recorded path means a checkpoint of this run, which may have moved."""
    return checkpoint.parent.name == "checkpoints" and checkpoint.parent.parent.name == folder.resolve().name


def _of_checkpoint(checkpoint: Path, folder: Path) -> Facts:
    network, block = trained_network(checkpoint)
    content = read_checkpoint(checkpoint)
    views = ViewSettings() if block["views"] is None else ViewSettings.from_dict(block["views"])
    saved = ""
    if isinstance(content.get("epoch"), int) and isinstance(content.get("global_step"), int):
        saved = f"{checkpoint.name}, saved in epoch {content['epoch'] + 1}, after {content['global_step']:,} steps"
    # A converted network's config is for training it on, and says nothing of how it came about.
    is_converted = (folder / "layers.json").is_file() and checkpoint.name == "converted.ckpt"
    scores, test, doubts = _test_of(checkpoint, folder)
    return Facts(
        name=folder.resolve().name,
        class_names=list(block["class_names"]),
        views=views,
        mean=tuple(block["mean"]),
        std=tuple(block["std"]),
        network=network,
        block=block,
        saved=saved,
        config={} if is_converted else _yaml(folder / "config.yaml"),
        scores=scores,
        test=test,
        doubts=doubts,
        conversion=_conversion(folder / "report.md") if is_converted else (),
    )


def _test_of(checkpoint: Path, folder: Path) -> tuple[VideoScores | None, Mapping[str, Any], tuple[str, ...]]:
    """Scores of the test of these weights, what was written beside them, and doubts about whether they are."""
    file = folder / "scores.npz"
    if not file.is_file():
        return None, {}, ()
    test = _json(folder / _TESTED)
    recorded = Path(str(test.get("checkpoint", "")))
    if recorded.suffix != ".ckpt":
        return VideoScores.load(file), test, ("It is not known which checkpoint was tested.",)
    if not _is_of(recorded, folder) or recorded.name != checkpoint.name:
        return None, {}, (f"The test of the run was of other weights ({recorded.name}), so its results are left out.",)
    if checkpoint.stat().st_mtime > file.stat().st_mtime:
        doubt = "The weights' file is newer than that of the test's scores: the results may be of earlier weights."
        return VideoScores.load(file), test, (doubt,)
    return VideoScores.load(file), test, ()


def _of_export(folder: Path) -> Facts:
    export = read_export(folder)
    return Facts(
        name=folder.resolve().name,
        class_names=list(export["class_names"]),
        views=ViewSettings.from_dict(export["views"]),
        mean=tuple(export["mean"]),
        std=tuple(export["std"]),
        export=export,
    )


def _conversion(report: Path) -> tuple[str, ...]:
    """What the report of octvideo convert says of clips and of how the networks compare, without its paths."""
    if not report.is_file():
        return ()
    starts = ("Measured on", "|", "Kept:", "- multiply-adds", "- CPU time", "- channels chosen")
    return tuple(line for line in read_text(report).splitlines() if line.startswith(starts))


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file} can't be read ({one_line(error)}): test the run again") from error
    return content if isinstance(content, dict) else {}


def _yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_text(file)) if file.is_file() else {}
    except yaml.YAMLError as error:
        raise UserError(f"{file} can't be read as YAML: {one_line(error)}") from error
    return content if isinstance(content, dict) else {}


def own_name(place: object) -> str:
    """The last part of a path, and of a run's checkpoint the run, too: whole paths say where somebody works.

    Example:
        >>> own_name("/home/me/runs/demo/checkpoints/best.ckpt"), own_name("/data/kinetics/"), own_name("timm:resnet50")
        ('demo/best.ckpt', 'kinetics', 'timm:resnet50')
    """
    text = str(place)
    if "://" in text:
        return shown(text).partition("?")[0]
    parts = Path(text).parts
    if len(parts) > 2 and parts[-2] == "checkpoints":
        return f"{parts[-3]}/{parts[-1]}"
    return parts[-1] if parts else text


def count_listed(facts: Facts, role: str) -> int | None:
    """How many videos the config's list of a role has now; None where it is not at hand."""
    root, source = facts.of_config("data", "root"), facts.of_config("data", role)
    if not isinstance(root, str) or not isinstance(source, str) or "://" in source:
        return None
    for place in (Path(root, source), Path(source)):
        if place.is_file():  # folders of 240,000 videos take long to walk
            try:
                return len(_listed(facts, place, Path(root)))
            except UserError:
                return None
    return None


def _listed(facts: Facts, place: Path, root: Path) -> VideoList:
    """As the run has read the list: of videos or of folders of frames, with one label or several."""
    names, first = facts.of_config("data", "frame_names"), facts.of_config("data", "first_frame")
    frames = None if names is None else FrameNames(names, 1 if first is None else first)
    classes, several = ClassIndex(facts.class_names), facts.scoring.has_several
    return read_records(place, root=root, classes=classes, labelled=False, several=several, frames=frames)


def shares_videos(facts: Facts) -> bool:
    """Whether the videos that chose best.ckpt are those of the test."""
    val, test = facts.of_config("data", "val"), facts.test.get("protocol", {}).get("videos")
    return val is not None and val == test and facts.saved.startswith("best.ckpt")
