"""VideoDataModule: everything between a folder of videos and batches on a device."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from octvideo.class_names import (
    SHIPPED,
    ClassIndex,
    UnreadLabels,
    class_difference,
    class_names_of,
    folder_class_names,
    match_classes,
    read_class_names,
    some,
)
from octvideo.data.augment import Augmentation
from octvideo.data.balance import ClassBalance
from octvideo.data.dataset import EvaluationVideos, TrainingClips
from octvideo.data.flips import flipped_classes, read_swaps, warning_of_sides
from octvideo.data.loading import Collate, EvaluationBatches, ResumableLoader, TrainingBatches
from octvideo.data.manifest import check_files, read_records
from octvideo.data.quarantine import Quarantine
from octvideo.data.records import VideoList
from octvideo.data.shards import INDEX, check_archives, holds_shards, read_shards, read_text
from octvideo.data.workers import worker_settings
from octvideo.errors import UserError
from octvideo.stores import StoreError, exists, is_remote, joined, shown
from octvideo.video import Decoder, FrameNames, Sampling, ShortVideo, ViewSettings

SamplerName = Literal["shuffle", "balanced"]

log = logging.getLogger("octvideo.data")


class VideoDataModule(L.LightningDataModule):
    """Videos in folders or lists, as training clips and as evaluation items of all views.

    Args:
        root: folder of the data set, or its address; lists and the paths in them start from it.
        train: list, csv of Kinetics, folder of class folders or of shards, in `root`; or the address of a list or of
            shards. In a root behind an address, a list or shards.
        val: the same for validation; None validates nothing.
        test: the same for tests; None takes `val`.
        predict: list or folder of videos, labels not needed; None takes `test`.
        quarantine: list of videos to leave out, wherever they are listed: see octvideo check.
        frame_names: how images are called, such as "img_{:05d}.jpg": lists are of folders of extracted frames then,
            lines of "folder num_frames label". None reads videos.
        first_frame: number in the name of a folder's first image.
        frame_fps: frames per second of such folders, which target_fps needs.
        classes: "kinetics400", "kinetics600", "kinetics700", or a file with a name a line; None takes
            classes.txt in `root`, else the names of the class folders.
        clip_frames: T.
        frame_stride: from one frame of a clip to the next.
        short_video: what follows the last frame of a video shorter than a clip.
        target_fps: clips are frames of a clock of this rate, whatever each video's own, and frame_stride counts its
            ticks; None counts the video's frames.
        sampling: "dense": clips of frames that are frame_stride apart; "segments" (TSN, TSM) and "segments_ssv2"
            (PySlowFast): a frame of each of T equal parts of the whole video, a random one in training, the middle one
            in evaluation; frame_stride and short_video count for nothing then.
        augment: of training clips.
        num_clips: of a tested video.
        num_crops: of each of its clips, 1 or 3.
        short_side_px: in evaluation.
        crop_px: in evaluation.
        val_clips: clips of a video in validation, which runs every epoch and should be quick.
        val_crops: crops of each of these.
        flip_labels: pairs of classes that a flip makes of each other, left and right ones, {name: name} or a YAML
            file of such lines.
        batch_size: training clips per process, repeats among them.
        repeats: so many clips of a video are in a batch, decoded once and each augmented anew; an epoch then has so
            many times as many steps.
        sampler: in which order training videos come: "shuffle" has each once an epoch, "balanced" each class equally
            often: octvideo/data/balance.py.
        several_labels: whether lists may give a video several labels, `path a;b;c`. The commands set it from the model:
            with model.loss bce.
        train_labels: whether training videos must have labels; false reads none. The commands set it from the model:
            a teacher alone may teach.
        eval_batch_size: videos per process in evaluation; the module cuts their views into chunks.
        num_workers: loading processes of each training process; None takes its share of the CPUs that the run may
            use, 16 at most.
        decoder: "auto" is PyAV; others, which must be installed, refuse what they may get wrong.
        how_to_get: said where the data set is missing.
        seed: of orders and augmentation; the CLI sets it from seed_everything.
    """

    def __init__(
        self,
        root: str,
        *,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        quarantine: str | None = None,
        frame_names: str | None = None,
        first_frame: int = 1,
        frame_fps: float | None = None,
        classes: str | None = None,
        clip_frames: int = 8,
        frame_stride: int = 8,
        short_video: ShortVideo = "repeat_last",
        target_fps: float | None = None,
        sampling: Sampling = "dense",
        augment: Augmentation = Augmentation(),  # noqa: B008 (frozen)
        num_clips: int = 10,
        num_crops: int = 3,
        short_side_px: int = 256,
        crop_px: int = 256,
        val_clips: int = 1,
        val_crops: int = 1,
        flip_labels: dict[str, str] | str | None = None,
        batch_size: int = 8,
        repeats: int = 1,
        sampler: SamplerName = "shuffle",
        several_labels: bool = False,
        train_labels: bool = True,
        eval_batch_size: int = 1,
        num_workers: int | None = None,
        decoder: Decoder = "auto",
        how_to_get: str = "data/README.md tells how to get and lay out each data set",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or eval_batch_size < 1:
            raise UserError(f"batch_size: got {batch_size} and {eval_batch_size} (eval), expected 1 or more")
        if repeats < 1 or batch_size % repeats:
            raise UserError(
                f"data.repeats: got {repeats} with a batch_size of {batch_size}, expected a divisor of it: batch_size "
                "counts clips, and a batch holds all clips of each of its videos"
            )
        if frame_fps is not None and not 0 < frame_fps <= 1000:
            raise UserError(f"data.frame_fps: got {frame_fps}, expected more than 0 and at most 1000, or none")
        if frame_names is not None and target_fps is not None and frame_fps is None:
            raise UserError(
                f"data.frame_fps: got none with a target_fps of {target_fps}, expected the frames per second of the "
                "folders of data.frame_names"
            )
        if sampler == "balanced" and not train_labels:
            raise UserError(
                "data.sampler balanced needs labels, and they are not read where the teacher alone teaches: leave it "
                "out, or give model.label_weight"
            )
        self.frame_names = None if frame_names is None else FrameNames(frame_names, first_frame)
        self.frame_fps = frame_fps
        self.root: str | Path = root.rstrip("/") if is_remote(root) else Path(root)
        self.sampler, self.several_labels = sampler, several_labels
        self.sources = {"train": train, "val": val, "test": test or val, "predict": predict or test or val}
        self.classes, self.quarantine = classes, quarantine
        self.augment, self.train_labels = augment, train_labels
        self.flip_labels, self.repeats = flip_labels, repeats
        clips = {"clip_frames": clip_frames, "frame_stride": frame_stride, "short_video": short_video}
        self.clip_settings: dict[str, Any] = {**clips, "target_fps": target_fps, "sampling": sampling}
        common = {**self.clip_settings, "short_side_px": short_side_px, "crop_px": crop_px}
        self.view_settings = ViewSettings(**common, num_clips=num_clips, num_crops=num_crops)
        self.val_view_settings = ViewSettings(**common, num_clips=val_clips, num_crops=val_crops)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        if num_workers is not None and num_workers < 0:
            raise UserError(f"num_workers: got {num_workers}, expected 0 or more")
        self.num_workers = num_workers
        self.decoder, self.how_to_get, self.seed = decoder, how_to_get, seed
        self.records: dict[str, VideoList] = {}

    # ── what the data set holds ─────────────────────────────────────────────────────────────────────────────

    @cached_property
    def class_names(self) -> list[str]:
        """K names in the order of their ids.

        Raises:
            UserError: they can't be found.
        """
        if self.classes is not None:
            return read_class_names(
                self.classes if self.classes in SHIPPED else self._look_for("classes", self.classes)
            )
        if self._has_own_classes:
            return read_class_names(self._own_classes)
        for role, source in self.sources.items():
            if source is None:
                continue
            place = self._find(role)
            if holds_shards(str(place)):
                if (text := read_text(str(place), "classes.txt", wanted=False)) is not None:
                    return class_names_of(text, f"{place}/classes.txt")
            elif not is_remote(place) and Path(place).is_dir():
                names = folder_class_names(Path(place))
                if len(names) == 1:
                    raise UserError(
                        f"{place} has one class folder, {names[0]!r}, and a network nothing to tell it from: expected "
                        f"{place}/<class>/<video> of two classes or more, or one in {shown(str(self._own_classes))}"
                    )
                return names
        raise UserError(
            "no class names: give data.classes (of octvideo shards: --classes, or --unlabelled), "
            f"a file with a name a line or kinetics400/600/700, or write {shown(str(self._own_classes))}"
        )

    @property
    def _own_classes(self) -> str | Path:
        return joined(self.root, "classes.txt") if is_remote(self.root) else Path(self.root, "classes.txt")

    @cached_property
    def _has_own_classes(self) -> bool:
        return _is_there(self._own_classes)

    def take_class_names(self, trained: Sequence[str]) -> None:
        """For prediction, and where a teacher alone teaches: names of the checkpoint, unless the data has the same
        ones in an order of its own.

        Args:
            trained: the checkpoint's.
        """
        try:
            match = match_classes(trained, self.class_names)
        except UserError:  # no data but the videos to predict
            match = None
        if match is None or match.order is None:
            if match is not None and (self.classes is not None or self._has_own_classes):
                log.warning("the checkpoint has %s: its own are predicted, and labels are read as theirs", match.said)
            self.class_names = list(trained)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def _find(self, role: str) -> Path | str:
        """The list or folder of a role, or its address.

        Raises:
            UserError: it is not there, with the places looked in and how to get the data.
        """
        source = self.sources[role]
        if source is None:
            raise UserError(f"data.{role} is not set: give a list of videos or a folder of class folders, in data.root")
        return self._look_for(role, source)

    def _look_for(self, key: str, source: str) -> Path | str:
        if is_remote(source):
            return source
        here = joined(self.root, source) if is_remote(self.root) else Path(self.root, source)
        places = list(dict.fromkeys([here, Path(source)]))
        for place in places:
            if _is_there(place) or (is_remote(place) and _is_there(f"{place}/{INDEX}")):
                return place
        looked = " and ".join(shown(place) if isinstance(place, str) else str(place.absolute()) for place in places)
        advice = "octvideo check writes such a list" if key == "quarantine" else self.how_to_get
        if key == "flip_labels":
            advice = "It is a YAML file of `name: name` lines"
        elif isinstance(self.root, str):
            advice = f"data.root is {shown(self.root)}: a list there, or shards"
        elif not self.root.is_dir():
            advice = f"There is no folder {self.root}, which data.root names. {advice}"
        elif key != "quarantine" and not any(self.root.glob("*.txt")) and any(map(Path.is_dir, self.root.iterdir())):
            name = shlex.quote(str(self.root))
            advice = f"Are its folders classes? Then octvideo prepare list folder {name} writes the lists. {advice}"
        raise UserError(f"no data for data.{key} '{source}': looked for {looked}. {advice}")

    @cached_property
    def _quarantine(self) -> Quarantine | None:
        if self.quarantine is None:
            return None
        quarantine = Quarantine(self._look_for("quarantine", self.quarantine), root=self.root)
        quarantine.warn_of_strangers()
        return quarantine

    def videos(self, role: str) -> VideoList:
        """The videos of a role, read once.

        Args:
            role: "train" (see train_labels) or "val", whose videos must all have a label, "test" or "predict".

        Raises:
            UserError: they can't be found, or a list has a mistake.
        """
        if role in self.records:
            return self.records[role]
        source, is_read = str(self._find(role)), role != "train" or self.train_labels
        labelled = role == "val" or (role == "train" and is_read)
        if holds_shards(source):
            records = self._read_shards(source, labelled=labelled) if is_read else read_shards(source, labelled=False)
            check_archives(records)
        else:
            classes = ClassIndex(self.class_names) if is_read else UnreadLabels()
            how: dict[str, Any] = {"labelled": labelled, "several": self.several_labels}
            how |= {"frames": self.frame_names, "fps": self.frame_fps}
            records = read_records(source, root=self.root, classes=classes, **how)
            check_files(records, source, self.how_to_get)
        if self._quarantine is not None:
            records = self._quarantine.leave_out(records, source)
        if role == "train" and labelled:
            self._warn_of_absent_classes(records.class_counts(self.num_classes), source)
        unlabelled = (records.labels < 0).nonzero()[:, 0]
        if role == "test" and 0 < len(unlabelled) < len(records):
            counts, first = f"{len(unlabelled)} of its {len(records)}", records[int(unlabelled[0])].path
            log.warning("%s: %s videos have no label, the first %s; no metric counts them", source, counts, first)
        self.records[role] = records
        return records

    def _warn_of_absent_classes(self, counts: Tensor, source: str) -> None:
        there, absent = counts.nonzero()[:, 0].tolist(), (counts == 0).nonzero()[:, 0].tolist()
        if len(there) == 1:
            name = self.class_names[there[0]]
            log.warning("%s: all videos have one class, %r, and a network nothing to tell it from", source, name)
        elif absent:
            names = some([self.class_names[number] for number in absent])
            # 1, 2, 3 for three classes are an error, but not where the class file has a name more.
            advice = "; ids start at 0, here they may start at 1" if there == list(range(1, len(there) + 1)) else ""
            log.warning("%s: no video of %d of %d classes: %s%s", source, len(absent), len(counts), names, advice)

    def _read_shards(self, source: str, *, labelled: bool) -> VideoList:
        videos = read_shards(source, labelled=labelled)
        text = read_text(source, "classes.txt", wanted=False)
        if text is not None and (theirs := class_names_of(text, f"{source}/classes.txt")) != self.class_names:
            raise UserError(
                f"{source} was written for other classes than data.classes gives "
                f"({class_difference(theirs, self.class_names)}): give its classes.txt as data.classes, "
                "or write the shards again with these classes"
            )
        if videos.has_several and not self.several_labels:
            raise UserError(f"{source} holds videos with several labels, which are for model.loss bce")
        if (highest := len(videos.class_counts(self.num_classes)) - 1) >= self.num_classes:
            raise UserError(f"{source} has the label {highest}, expected 0 to {self.num_classes - 1}")
        return videos

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """Of a training clip: (3, T, S, S)."""
        return 3, self.view_settings.clip_frames, self.augment.crop_px, self.augment.crop_px

    # ── Lightning ───────────────────────────────────────────────────────────────────────────────────────────

    def setup(self, stage: str) -> None:
        """Reads the lists that the stage needs, so that mistakes in them come before any work."""
        stage = getattr(stage, "value", stage)  # Lightning's is an enum whose str() is its own name
        for role in {"fit": ("train", "val"), "validate": ("val",)}.get(stage, (stage,)):
            if role != "val" or self.sources["val"] is not None or stage == "validate":
                self.videos(role)
        if stage == "fit":
            _ = self._flipped  # a mistake in it is told with those of the lists

    def training_clips(self) -> TrainingClips:
        """What training takes its batches from."""
        return TrainingClips(
            self.videos("train"),
            self.augment,
            **self.clip_settings,
            seed=self.seed,
            decoder=self.decoder,
            repeats=self.repeats,
            flipped=self._flipped,
        )

    @property
    def class_counts(self) -> Tensor:
        """Training videos of each class, int64 (K,)."""
        return self.videos("train").class_counts(self.num_classes)

    @cached_property
    def _balance(self) -> ClassBalance | None:
        if self.sampler == "shuffle":
            return None
        videos = self.videos("train")
        return ClassBalance(videos.members(self.num_classes), len(videos), seed=self.seed)

    @property
    def said_of_order(self) -> str:
        """What a run says of the order of its training videos; "" where each comes once an epoch."""
        return "" if self._balance is None else self._balance.described(self.class_names)

    @cached_property
    def _flipped(self) -> list[int] | None:
        """For each class the class that a flip makes of it."""
        if not self.train_labels:
            return None
        if self.flip_labels is None:
            if self.augment.flip > 0 and (warning := warning_of_sides(self.class_names)):
                log.warning("%s", warning)
            return None
        given = self.flip_labels
        swaps = read_swaps(self._look_for("flip_labels", given)) if isinstance(given, str) else given
        return flipped_classes(swaps, self.class_names)

    def train_dataloader(self) -> DataLoader[Any]:
        records, clips = self.videos("train"), self.training_clips()
        rank, world_size = self._process()
        videos = self.batch_size // self.repeats
        how: dict[str, Any] = {"seed": self.seed, "rank": rank, "world_size": world_size, "balance": self._balance}
        batches = TrainingBatches(len(records), videos, **how)
        shape = self.clip_shape
        return ResumableLoader(
            clips,
            batches,
            digest=records.digest(str(self.root)),
            trainer=self.trainer,
            collate_fn=Collate(shape),
            **self._workers(self.batch_size * prod(shape)),
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        return [] if self.sources["val"] is None else self._evaluation("val", self.val_view_settings)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluation("test", self.view_settings)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._evaluation("predict", self.view_settings)

    def _evaluation(self, role: str, views: ViewSettings) -> DataLoader[Any]:
        records = self.videos(role)
        rank, world_size = self._process()
        batches = EvaluationBatches(len(records), self.eval_batch_size, rank=rank, world_size=world_size)
        videos: Dataset[Any] = EvaluationVideos(records, views, decoder=self.decoder)
        workers = self._workers(self.eval_batch_size * views.typical_bytes)
        return DataLoader(videos, batch_sampler=batches, collate_fn=Collate(None), **workers)

    def _process(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def _workers(self, batch_bytes: int) -> dict[str, Any]:
        local_processes = 1 if self.trainer is None else self.trainer.num_devices
        return worker_settings(self.num_workers, batch_bytes=batch_bytes, local_processes=local_processes)


def _is_there(place: str | Path) -> bool:
    if isinstance(place, Path):
        return place.exists()
    try:
        return exists(place)
    except StoreError as error:
        raise UserError(f"can't reach {shown(place)}: {error}") from None
