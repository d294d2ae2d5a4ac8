"""The data module by itself and under a real Trainer: names, messages, batches, and a resume in mid-epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from octvideo.data import Augmentation
from octvideo.data.datamodule import VideoDataModule
from octvideo.data.records import VideoList, VideoRecord
from octvideo.data.shard_writer import write_shards
from octvideo.errors import UserError
from octvideo.models import i3d_small
from octvideo.training import VideoClassifier
from octvideo.video import VideoViews

NAMES = ["jump rope", "sit", "wave"]
SMALL: dict[str, Any] = {
    "clip_frames": 4,
    "frame_stride": 2,
    "augment": Augmentation(crop_px=32, short_side_px=(32, 40)),
    "num_clips": 2,
    "num_crops": 3,
    "short_side_px": 32,
    "crop_px": 32,
    "num_workers": 0,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, encode: Callable[..., Path], moving: Callable[..., Tensor]) -> Path:
    """train/<class>/*.mp4 with 7 videos, val/<class>/*.mp4 with 3, and lists of them."""
    folder = tmp_path_factory.mktemp("data set")
    frames = moving(30, 48, 64)
    for split, count in (("train", 7), ("val", 3)):
        lines = []
        for n in range(count):
            file = Path(split, NAMES[n % 3].replace(" ", "_"), f"{n}.mp4")
            encode(folder / file, frames[n : n + 12], g=8)
            lines.append(f"{file} {n % 3}\n")
        (folder / f"{split}.txt").write_text("".join(lines))
    (folder / "names.txt").write_text("\n".join(NAMES))
    return folder


def data(root: Path, **settings: Any) -> VideoDataModule:
    return VideoDataModule(str(root), **(SMALL | settings))


# ── class names ─────────────────────────────────────────────────────────────────────────────────────────────


def test_class_names_given(root: Path) -> None:
    module = data(root, train="train", classes="names.txt")
    assert module.class_names == NAMES and module.num_classes == 3
    assert data(root, train="train", classes="kinetics600").num_classes == 600
    assert data(root, train="train", classes=str(root / "names.txt")).class_names == NAMES


def test_class_names_of_folders(root: Path) -> None:
    assert data(root, train="train").class_names == ["jump_rope", "sit", "wave"]
    assert data(root, train="train.txt", val="val").class_names == ["jump_rope", "sit", "wave"]


def test_class_names_of_classes_txt(root: Path, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(root / "train")
    (tmp_path / "classes.txt").write_text("\n".join(reversed(NAMES)))
    module = data(tmp_path, train="train")
    assert module.class_names == NAMES[::-1]
    module.setup("fit")
    labels = {Path(record.path).parent.name: record.label for record in module.records["train"]}
    assert labels == {"jump_rope": 2, "sit": 1, "wave": 0}


def test_no_class_names(root: Path) -> None:
    with pytest.raises(UserError) as error:
        _ = data(root, train="train.txt").class_names
    assert str(error.value) == (
        "no class names: give data.classes (of octvideo shards: --classes, or --unlabelled), "
        f"a file with a name a line or kinetics400/600/700, or write {root / 'classes.txt'}"
    )


@pytest.mark.parametrize(
    ("labels", "names", "said"),
    [
        ((1, 2), "a b c d", "no video of 2 of 4 classes: 'a', 'd'; ids start at 0, here they may start at 1"),
        ((0, 2), "a b c", "no video of 1 of 3 classes: 'b'"),
        ((1, 1), "a b c", "all videos have one class, 'b', and a network nothing to tell it from"),
        ((0, 1), "a b", None),
    ],
)
def test_classes_without_a_video_are_said(
    root: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    labels: tuple[int, ...],
    names: str,
    said: str | None,
) -> None:
    (tmp_path / "list.txt").write_text("".join(f"{root}/val/sit/1.mp4 {label}\n" for label in labels))
    (tmp_path / "classes.txt").write_text("\n".join(names.split()))
    data(tmp_path, train="list.txt", test="list.txt").setup("test")  # only what is trained on needs all classes
    assert not [message for message in caplog.messages if "class" in message]
    data(tmp_path, train="list.txt").setup("fit")
    assert [message for message in caplog.messages if "class" in message] == (
        [f"{tmp_path}/list.txt: {said}"] if said else []
    )


# ── what is missing ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"train": "train", "classes": "names.txt"}, "data.train 'train'"),
        ({"train": "train", "classes": "kinetics400"}, "data.train 'train'"),
        ({"train": "train"}, "data.train 'train'"),
    ],
)
def test_missing_data_says_what_where_and_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = what.split("'")[1]
    with pytest.raises(UserError) as error:
        data(Path("data/k400"), **settings, how_to_get="Ask the librarian.").setup("fit")
    assert str(error.value) == (
        f"no data for {what}: looked for {tmp_path}/data/k400/{name} and {tmp_path}/{name}. "
        "There is no folder data/k400, which data.root names. Ask the librarian."
    )


def test_class_folders_without_lists_are_told_how_to_get_them(tmp_path: Path) -> None:
    (tmp_path / "wave").mkdir()
    with pytest.raises(UserError, match=f"Then octvideo prepare list folder {tmp_path} writes the lists"):
        data(tmp_path, train="train.txt").setup("fit")


def test_missing_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        _ = data(Path("data/k400"), train="train", classes="names.txt", how_to_get="Ask the librarian.").num_classes
    looked = f"{tmp_path}/data/k400/names.txt and {tmp_path}/names.txt"
    missing = "There is no folder data/k400, which data.root names. Ask the librarian."
    assert str(error.value) == f"no data for data.classes 'names.txt': looked for {looked}. {missing}"


def test_the_usual_advice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data/README\.md tells how to get and lay out each data set$"):
        data(tmp_path, train="train").setup("fit")


def test_a_list_with_a_wrong_root(root: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text((root / "train.txt").read_text())
    with pytest.raises(
        UserError, match=r"none of the videos of .*train\.txt is there: looked for 7 of its 7, the first"
    ):
        data(tmp_path, train="train.txt", classes=str(root / "names.txt")).setup("fit")


def test_roles_that_are_not_set(root: Path) -> None:
    module = data(root, train="train")
    module.setup("fit")  # no validation is fine
    assert module.val_dataloader() == []
    for stage, key in (("validate", "val"), ("test", "test"), ("predict", "predict")):
        with pytest.raises(
            UserError, match=rf"data\.{key} is not set: give a list of videos or a folder of class folder"
        ):
            module.setup(stage)


@pytest.mark.parametrize("name", ["batch_size", "eval_batch_size"])
def test_batch_sizes(root: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"batch_size: got . and . \(eval\), expected 1 or more"):
        data(root, train="train", **{name: 0})


# ── roles ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_roles_fall_back(root: Path) -> None:
    module = data(root, train="train", val="val.txt", classes="names.txt")
    for stage in ("fit", "validate", "test", "predict"):
        module.setup(stage)
    assert {role: len(records) for role, records in module.records.items()} == {
        "train": 7,
        "val": 3,
        "test": 3,
        "predict": 3,
    }


def test_prediction_needs_no_labels(root: Path, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text(f"{root}/val/sit/1.mp4\n")
    module = data(tmp_path, predict="some.txt", classes=str(root / "names.txt"))
    module.setup("predict")
    (batch,) = module.predict_dataloader()
    assert batch["label"].tolist() == [-1] and batch["path"] == [f"{root}/val/sit/1.mp4"]


@pytest.mark.parametrize("kind", ["folder", "list", "kinetics", "shards"])
def test_training_without_labels_reads_none(root: Path, tmp_path: Path, kind: str) -> None:
    """Whatever stands in their place: nothing, classes of another data set, ids that are too high."""
    videos = sorted(str(path) for path in (root / "train").glob("*/*.mp4"))
    train = root / "train"
    if kind == "list":
        train = tmp_path / "list.txt"
        train.write_text(f"{videos[0]}\n{videos[1]},flying\n{videos[2]} 99\n" + "\n".join(videos[3:]))
    elif kind == "kinetics":
        train = tmp_path / "train.csv"
        rows = [("flying", f"abcdefghij{n}", n, n + 10) for n in range(7)]
        for video, (_, name, start, end) in zip(videos, rows, strict=True):
            (tmp_path / f"{name}_{start:06d}_{end:06d}.mp4").symlink_to(video)
        train.write_text("".join(f"{label},{name},{start},{end},\n" for label, name, start, end in rows))
    elif kind == "shards":
        train = tmp_path / "shards"
        records = VideoList(VideoRecord(video, 99) for video in videos)
        write_shards(records, train, root=root, class_names=[f"class {n}" for n in range(100)])
    module = data(tmp_path if kind == "kinetics" else root, train=str(train), train_labels=False)
    module.class_names = NAMES
    assert len(module.videos("train")) == 7
    if kind != "shards":
        assert set(module.videos("train").labels.tolist()) == {-1}


def test_labels_that_are_missing_in_a_test_are_said_aloud(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video = root / "val/sit/1.mp4"
    (tmp_path / "test.txt").write_text(f"{video} 1\n{video}\n")
    with caplog.at_level(logging.WARNING, "octvideo.data"):
        data(tmp_path, test="test.txt", classes=str(root / "names.txt")).setup("test")
    (said,) = [record.getMessage() for record in caplog.records if record.name == "octvideo.data"]
    assert said == f"{tmp_path}/test.txt: 1 of its 2 videos have no label, the first {video}; no metric counts them"


def test_kinetics(root: Path, tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val/-abcdefghij_000007_000017.mp4").symlink_to(root / "val/sit/1.mp4")
    (tmp_path / "val.csv").write_text("label,youtube_id,time_start,time_end,split\nzumba,-abcdefghij,7,17,val\n")
    module = data(tmp_path, val="val.csv", classes="kinetics400")
    module.setup("validate")
    (batch,) = module.val_dataloader()
    assert batch["label"].tolist() == [399] and shapes(batch["video"]) == [(1, 3, 4, 32, 32)]


def shapes(videos: list[VideoViews]) -> list[tuple[int, ...]]:
    return [tuple(video.cut().shape) for video in videos]


def test_batches(root: Path) -> None:
    module = data(root, train="train", val="val", batch_size=2, eval_batch_size=2)
    training = list(module.train_dataloader())
    assert [tuple(batch["video"].shape) for batch in training] == [(2, 3, 4, 32, 32)] * 3  # 7 videos, 3 whole batches
    validation, test = list(module.val_dataloader()), list(module.test_dataloader())
    assert [shapes(batch["video"]) for batch in validation] == [[(1, 3, 4, 32, 32)] * 2, [(1, 3, 4, 32, 32)]]
    assert [shapes(batch["video"]) for batch in test] == [[(6, 3, 4, 32, 32)] * 2, [(6, 3, 4, 32, 32)]]
    assert torch.cat([batch["index"] for batch in test]).tolist() == [0, 1, 2]
    assert torch.cat([batch["label"] for batch in test]).tolist() == [0, 1, 2]


# ── under a Trainer ─────────────────────────────────────────────────────────────────────────────────────────


class Interrupted(Exception):  # noqa: N818
    """Stands for a machine that goes down."""


class Witness(L.Callback):
    """Notes the items of each training batch, and may save a checkpoint and stop the run after so many of them."""

    def __init__(self, stop_after: int | None = None, checkpoint: Path | None = None) -> None:
        self.stop_after, self.checkpoint = stop_after, checkpoint
        self.seen: list[tuple[int, list[int]]] = []
        self.pixels: list[Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append((trainer.current_epoch, batch["index"].tolist()))
        self.pixels.append(batch["video"].clone())
        if len(self.seen) == self.stop_after:
            trainer.save_checkpoint(self.checkpoint)
            raise Interrupted


def fit(
    root: Path, folder: Path, witness: Witness, *, resume: Path | None = None, val: str | None = None, **trainer: Any
) -> VideoClassifier:
    torch.manual_seed(0)
    model = VideoClassifier(i3d_small(num_classes=3, width=8), lr=0.01)
    settings: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
    }
    with_data = data(root, train="train.txt", val=val, classes="names.txt", batch_size=2)
    runner = L.Trainer(**(settings | trainer), callbacks=[witness])
    runner.fit(model, with_data, ckpt_path=resume, weights_only=False if resume else None)
    return model


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Witness, dict[str, Tensor]]:
    """A run without interruption: 2 epochs of 3 batches."""
    witness = Witness()
    model = fit(root, tmp_path_factory.mktemp("whole"), witness)
    return witness, model.network.state_dict()


def test_an_epoch_shows_each_clip_at_most_once(whole: tuple[Witness, dict[str, Tensor]]) -> None:
    seen = whole[0].seen
    assert [epoch for epoch, _ in seen] == [0, 0, 0, 1, 1, 1]
    epochs = [[index for epoch, batch in seen for index in batch if epoch == number] for number in (0, 1)]
    assert all(len(set(epoch)) == 6 for epoch in epochs) and epochs[0] != epochs[1]


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4])
def test_a_resumed_run_sees_the_remaining_clips_once_and_ends_with_the_same_weights(
    root: Path, tmp_path: Path, whole: tuple[Witness, dict[str, Tensor]], stop_after: int
) -> None:
    checkpoint = tmp_path / "middle.ckpt"
    first, second = Witness(stop_after, checkpoint), Witness()
    with pytest.raises(Interrupted):
        fit(root, tmp_path, first)
    model = fit(root, tmp_path, second, resume=checkpoint)
    reference, weights = whole
    assert first.seen + second.seen == reference.seen
    assert all(map(torch.equal, first.pixels + second.pixels, reference.pixels))
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_limited_epochs_resume_at_the_beginning_of_the_next(root: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"limit_train_batches": 2}
    reference, second = Witness(), Witness()
    fit(root, tmp_path, reference, **settings)
    keep = L.pytorch.callbacks.ModelCheckpoint(tmp_path / "kept", save_last=True, every_n_epochs=1)
    torch.manual_seed(0)
    runner = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, callbacks=[keep], enable_progress_bar=False, **settings
    )
    model = VideoClassifier(i3d_small(num_classes=3, width=8), lr=0.01)
    runner.fit(model, data(root, train="train.txt", classes="names.txt", batch_size=2))
    fit(root, tmp_path, second, resume=tmp_path / "kept/last.ckpt", **settings)
    assert second.seen == reference.seen[2:]


def test_validation_runs_beside_training(root: Path, tmp_path: Path) -> None:
    witness = Witness()
    model = fit(root, tmp_path, witness, val="val", max_epochs=1)
    metrics = model.trainer.callback_metrics
    assert 0 <= metrics["val/top1"] <= 1 and metrics["val/unreadable"] == 0
    assert len(witness.seen) == 3
