"""Runs that stop at every place and are resumed, with a network and data small enough to try them all."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, OnExceptionCheckpoint
from torch import Tensor, nn
from torch.utils.data import Dataset

from octvideo.batches import Failure
from octvideo.data import Augmentation
from octvideo.data.datamodule import VideoDataModule
from octvideo.data.dataset import Item
from octvideo.data.loading import TrainingBatches
from octvideo.errors import UserError
from octvideo.seeds import seed_of
from octvideo.training import RunFolder, VideoClassifier, checkpoint_callbacks
from octvideo.training.callbacks import ProgressBar
from octvideo.training.lightning_parts import WholeFiles
from octvideo.training.schedule import Schedule
from octvideo.video import Box, VideoViews

VIDEOS = 11


class Network(nn.Module):
    """What a resume may lose: statistics of a norm, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout, self.head = nn.BatchNorm3d(3), nn.Dropout(0.3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.norm(x).mean((2, 3, 4))))


class Teacher(nn.Module):
    """Another network, with more features."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x.mean((2, 3, 4))).relu())


class Drawn(Dataset[Any]):
    """Clips, or whole videos, of noise in place of what is read from files; those called bad can't be read."""

    def __init__(self, records: Any, *args: Any, seed: int = 0, **settings: Any) -> None:
        self.records, self.seed, self.training = records, seed, "seed" in settings or "clip_frames" in settings

    def __len__(self) -> int:
        return len(self.records)

    def noise(self, epoch: int, index: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed_of(self.seed, epoch, index, "noise"))
        return torch.randint(0, 256, (3, 2, 4, 4), dtype=torch.uint8, generator=draw)

    def __getitem__(self, key: Any) -> Item | Failure:
        epoch, index = key if self.training else (0, key)
        record = self.records[index]
        if Path(record.path).name.startswith("bad"):
            return Failure(record.path, "broken", index)
        noise = self.noise(epoch, index)
        views = VideoViews(noise.permute(1, 2, 3, 0), np.array([[0, 1]]), (Box(0, 0, 4, 4),))
        return Item(noise if self.training else views, record.label, index, record.path)


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TrainingClips", "EvaluationVideos"):
        monkeypatch.setattr(f"octvideo.data.datamodule.{name}", Drawn)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """train.txt with 11 videos, val.txt with 3."""
    (tmp_path / "names.txt").write_text("a\nb\n")
    for split, count in (("train", VIDEOS), ("val", 3)):
        write_list(tmp_path, split, [f"{split}{number}.mp4" for number in range(count)])
    return tmp_path


def write_list(root: Path, split: str, names: list[str]) -> None:
    for name in names:
        (root / name).touch()
    (root / f"{split}.txt").write_text("".join(f"{name} {number % 2}\n" for number, name in enumerate(names)))


class Watch(L.Callback):
    """Notes each trained batch and its learning rate, and may save a checkpoint behind the n-th."""

    def __init__(self, save_behind: int | None = None) -> None:
        self.seen: list[tuple[int, list[int]]] = []
        self.rates: list[float] = []
        self.save_behind = save_behind

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        indices = batch["index"].tolist() + [failure.index for failure in batch["failures"]]
        self.seen.append((trainer.current_epoch, indices))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        if len(self.seen) == self.save_behind:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "asked.ckpt")

    def epoch(self, number: int) -> list[int]:
        """What was trained on in one epoch."""
        return [index for epoch, indices in self.seen if epoch == number for index in indices]


class KeepAll(WholeFiles):
    """Keeps a copy of every checkpoint that is written: what a kill at any moment may find is one of them."""

    def __init__(self) -> None:
        self.kept: list[Path] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, path)
        self.kept.append(Path(path).parents[2] / f"{len(self.kept)}-{Path(path).name}")
        shutil.copy(path, self.kept[-1])


def fit(
    root: Path,
    watch: Watch | None = None,
    *,
    resume: Path | None = None,
    data: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    callbacks: Sequence[L.Callback] = (),
    **trainer: Any,
) -> L.Trainer:
    """A run in root/run as the command line has it, which saves wherever it may."""
    torch.manual_seed(0)
    module = VideoClassifier(Network(), **{"lr": 0.1, "max_unreadable_fraction": 1.0} | (model or {}))
    clips = {"clip_frames": 2, "frame_stride": 1, "augment": Augmentation(crop_px=4, short_side_px=(4, 4))}
    lists = {"train": "train.txt", "val": "val.txt", "classes": "names.txt"}
    videos = VideoDataModule(str(root), **(lists | clips | {"batch_size": 2, "num_workers": 0} | (data or {})))
    settings: dict[str, Any] = {"max_epochs": 2, "logger": False, "enable_progress_bar": False}
    runner = L.Trainer(
        accelerator="cpu",
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=root / "run",
        callbacks=[
            *([watch] if watch else []),
            *callbacks,
            *checkpoint_callbacks(RunFolder(root / "run"), every_minutes=0),
        ],
        **(settings | trainer),
    )
    runner.fit(module, videos, ckpt_path=resume)
    return runner


def stopped_behind(root: Path, batches: int, watch: Watch | None = None, **settings: Any) -> Path:
    """A checkpoint written behind so many batches of a run."""
    watch = watch or Watch(batches)
    watch.save_behind = batches
    fit(root, watch, **settings)
    del watch.seen[batches:]
    return root / "run" / "asked.ckpt"


def differences(one: Path, other: Path) -> list[str]:
    """What is not equal bit for bit in two checkpoints: weights, momentum, steps, best score."""
    first, second = (torch.load(path, weights_only=True) for path in (one, other))
    found = [key for key, value in first["state_dict"].items() if not torch.equal(value, second["state_dict"][key])]
    momenta = [[s["momentum_buffer"] for s in c["optimizer_states"][0]["state"].values()] for c in (first, second)]
    found += ["momentum"] * (not all(map(torch.equal, *momenta)))
    best = [[s["best_model_score"] for k, s in c["callbacks"].items() if "val/top1" in k] for c in (first, second)]
    return found + ["best"] * (best[0] != best[1]) + [k for k in ("global_step", "epoch") if first[k] != second[k]]


def best_of(root: Path, name: str = "last") -> dict[str, Any]:
    """What a checkpoint of root/run knows of the best one."""
    content = torch.load(root / "run" / "checkpoints" / f"{name}.ckpt", weights_only=True)
    (state,) = (state for key, state in content["callbacks"].items() if "val/top1" in key)
    return state


@pytest.fixture
def worse(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """root/run/checkpoints after an epoch of top-1 .9; epochs from now on have less than that."""
    scores = iter([0.9, 0.5, 0.6])
    monkeypatch.setattr(VideoClassifier, "on_validation_epoch_end", lambda self: self.log("val/top1", next(scores)))
    fit(root, max_epochs=1)
    assert best_of(root)["best_model_score"].item() == pytest.approx(0.9)
    return root / "run" / "checkpoints"


# ── the same settings ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "ends", [{}, pytest.param({"max_epochs": -1, "max_steps": 7}, marks=pytest.mark.slow)], ids=["epochs", "steps"]
)
@pytest.mark.parametrize("window", [1, 2, pytest.param(3, marks=pytest.mark.slow), {0: 2, 1: 3}])
def test_a_run_resumed_from_whatever_it_saved_ends_with_the_same_weights(
    root: Path, window: int | dict[int, int], ends: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Epochs of 5 batches: no multiple of 2 or 3."""
    scheduled = isinstance(window, dict)
    settings: dict[str, Any] = ends | ({} if scheduled else {"accumulate_grad_batches": window})

    def callbacks() -> list[L.Callback]:
        return [GradientAccumulationScheduler(dict(window))] if isinstance(window, dict) else []

    saved, whole = KeepAll(), Watch()
    fit(root, whole, plugins=saved, callbacks=callbacks(), **settings)
    end = saved.kept[-1]
    assert end.name.endswith("last.ckpt") and len(whole.seen) >= 7
    if not ends:  # within both epochs, and at their ends
        within = {1: 8, 2: 4, 3: 2}.get(window, 3) if not scheduled else 3
        assert sum(path.name.endswith("last.ckpt") for path in saved.kept) == within + 2
    for checkpoint in saved.kept:
        resumed = Watch()
        capsys.readouterr()
        fit(root, resumed, resume=checkpoint, callbacks=callbacks(), **settings)
        rest = len(whole.seen) - len(resumed.seen)
        assert resumed.seen == whole.seen[rest:] and resumed.rates == whole.rates[rest:], checkpoint
        assert differences(root / "run" / "checkpoints" / "last.ckpt", end) == [], checkpoint
        out = capsys.readouterr().out
        assert "nan" not in out
        if not ends and checkpoint != end:
            assert rest > 0 and out.count("epoch 2/2  ") + out.count("epoch 2/2 was") == 1


def test_a_taught_run_resumes_bit_for_bit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a projection that learns, mixed clips, gathered gradients, and statistics of norms estimated anew."""
    torch.manual_seed(1)
    teacher, block = Teacher(), {"class_names": ["b", "a"], "mean": [0.4] * 3, "std": [0.2] * 3}
    block["network"] = {"class_path": "Teacher"}
    monkeypatch.setattr(
        "octvideo.training.distillation.trained_network", lambda path: (copy.deepcopy(teacher).eval(), block)
    )
    model = {"teacher": "t.ckpt", "distill_features": 1.0, "mixup_alpha": 0.4, "precise_bn": 2, "label_weight": 0.3}
    settings: dict[str, Any] = {"model": model, "accumulate_grad_batches": 2}
    saved, means = KeepAll(), []

    class Means(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
            means.append(module.network.norm.running_mean.clone())

    fit(root, plugins=saved, callbacks=[Means()], **settings)
    first, whole = saved.kept[0], list(means)
    for checkpoint in saved.kept[::2]:
        fit(root, resume=checkpoint, callbacks=[Means()], **settings)
        assert differences(root / "run" / "checkpoints" / "last.ckpt", saved.kept[-1]) == [], checkpoint
        assert torch.equal(means[-1], whole[-1])
    assert "distillation.projection.weight" in torch.load(first, weights_only=True)["state_dict"]
    # The epoch's first two batches, normalised, have these means.
    order = order_of(1)[:4]
    clips = torch.stack([Drawn([], seed=0).noise(1, index) for index in order]).float()
    expected = ((clips - 255 * 0.45) / (255 * 0.225)).mean((0, 2, 3, 4))
    torch.testing.assert_close(whole[-1], expected)


@pytest.mark.parametrize(
    "model",
    [{"precise_bn": 2}, pytest.param({"ema_warmup": False, "optimizer": "adamw"}, marks=pytest.mark.slow)],
    ids=["precise", "flat"],
)
def test_an_averaged_run_resumes_bit_for_bit(root: Path, model: dict[str, Any]) -> None:
    """From within an epoch and from its end; what is evaluated is what is saved as the weights."""
    settings: dict[str, Any] = {"model": model | {"ema_decay": 0.9}, "accumulate_grad_batches": 2}
    saved, evaluated = KeepAll(), []

    class Evaluated(L.Callback):
        def on_validation_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
            evaluated.append({f"network.{k}": v.clone() for k, v in module.network.state_dict().items()})

    fit(root, plugins=saved, callbacks=[Evaluated()], **settings)
    end = torch.load(saved.kept[-1], weights_only=True)
    assert end["octvideo"]["averaged"]["updates"] == end["global_step"] == 6
    assert all(torch.equal(value, end["state_dict"][key]) for key, value in evaluated[-1].items())
    assert not torch.equal(end["state_dict"]["network.head.weight"], end["current_model_state"]["network.head.weight"])
    for checkpoint in saved.kept[::2]:
        fit(root, resume=checkpoint, **settings)
        found = torch.load(root / "run" / "checkpoints" / "last.ckpt", weights_only=True)
        for part in ("state_dict", "current_model_state", "averaging_state"):
            wrong = [
                key
                for key, value in end[part].items()
                if not torch.equal(torch.as_tensor(value), torch.as_tensor(found[part][key]))
            ]
            assert wrong == [], (checkpoint, part)
    with pytest.raises(UserError, match=r"averages its weights \(model.ema_decay 0.9\), this one does not"):
        fit(root, resume=saved.kept[0], model={key: value for key, value in model.items() if "ema" not in key})


def test_averages_follow_the_weights_of_each_optimizer_step(root: Path) -> None:
    """By the formula, from what each step left."""

    class Steps(L.Callback):
        def __init__(self) -> None:
            self.weights: list[Tensor] = []

        def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
            if trainer.global_step > len(self.weights):
                self.weights.append(module.network.head.weight.detach().clone())

    steps = Steps()
    fit(root, callbacks=[steps], accumulate_grad_batches=2, model={"ema_decay": 0.5})
    average = steps.weights[0]
    for n, weight in enumerate(steps.weights[1:], 2):
        decay = min(0.5, 1 - n ** (-2 / 3))
        average = decay * average + (1 - decay) * weight
    found = torch.load(root / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert len(steps.weights) == 6
    torch.testing.assert_close(found["network.head.weight"], average)


def test_other_groups_of_rates_do_not_go_on(root: Path) -> None:
    place = stopped_behind(root, 2)
    with pytest.raises(UserError, match=r"has 2 groups of parameters by learning rate and decay, this one 3: give its"):
        fit(root, resume=place, model={"backbone_lr_scale": 0.1})


def test_rates_are_scaled_by_group_and_batch(root: Path) -> None:
    """A step has 2 clips of 2 batches, and the rate is that of 8."""
    watch, heads = Watch(), []

    class Heads(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            heads.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    model = {"lr": 0.8, "lr_batch_size": 8, "backbone_lr_scale": 0.25, "schedule": "constant"}
    fit(root, watch, callbacks=[Heads()], accumulate_grad_batches=2, model=model)
    assert all(rates == pytest.approx([0.1, 0.4, 0.4]) for rates in heads) and heads
    resumed = stopped_behind(root, 3, accumulate_grad_batches=2, model=model)
    heads.clear()
    model["backbone_lr_scale"] = 0.5
    fit(root, callbacks=[Heads()], accumulate_grad_batches=2, model=model, resume=resumed)
    assert heads[-1] == pytest.approx([0.2, 0.4, 0.4])


def test_workers_draw_from_the_epoch_that_is_resumed(root: Path) -> None:
    """They ask for batches as soon as there is a loader."""
    saved, whole = KeepAll(), Watch()
    fit(root, whole, plugins=saved, max_epochs=3)
    ends = [path for path in saved.kept if torch.load(path, weights_only=True)["global_step"] in (5, 10)]
    assert len(ends) >= 2
    for checkpoint in ends:
        resumed = Watch()
        fit(root, resumed, resume=checkpoint, max_epochs=3, data={"num_workers": 1})
        assert resumed.seen == whole.seen[-len(resumed.seen) :], checkpoint
        assert differences(root / "run" / "checkpoints" / "last.ckpt", saved.kept[-1]) == [], checkpoint


@pytest.mark.parametrize(
    ("steps", "window"),
    [
        (1, 1),
        (4, 2),
        (5, 1),
        (7, 2),
        *(pytest.param(*p, marks=pytest.mark.slow) for p in [(1, 2), (4, 1), (5, 2), (7, 1)]),
    ],
)
def test_an_epoch_that_max_steps_cut_short_goes_on(
    root: Path, steps: int, window: int, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"model": {"schedule": "constant"}, "accumulate_grad_batches": window, "max_epochs": 3}
    saved, whole, first, rest = KeepAll(), Watch(), Watch(), Watch()
    fit(root, whole, plugins=saved, **settings)
    cut = KeepAll()
    fit(root, first, plugins=cut, **(settings | {"max_epochs": -1, "max_steps": steps}))
    assert "/-1" not in capsys.readouterr().out
    fit(root, rest, resume=cut.kept[-1], **settings)
    assert first.seen + rest.seen == whole.seen
    assert differences(root / "run" / "checkpoints" / "last.ckpt", saved.kept[-1]) == []


@pytest.mark.parametrize(
    ("model", "now"), [({"optimizer": "adamw"}, "4 by adamw"), ({"freeze": "backbone"}, "2 by sgd")]
)
def test_another_optimizer_or_other_frozen_weights_do_not_go_on(root: Path, model: dict[str, Any], now: str) -> None:
    place = stopped_behind(root, 2)
    with pytest.raises(UserError, match=f"the checkpoint's run trains 4 parameters by sgd, this one {now}: give its"):
        fit(root, resume=place, model=model)


def test_a_checkpoint_from_within_a_window_begins_the_window_again(root: Path) -> None:
    """As a callback of the user's may save it; norms have seen its first batch, but no weight has."""
    whole, resumed = Watch(), Watch()
    checkpoint = stopped_behind(root, 7, whole, accumulate_grad_batches=2)  # 5 batches are an epoch, then 2: a step
    fit(root, resumed, resume=checkpoint, accumulate_grad_batches=2)
    assert len(resumed.seen) == 3
    checkpoint = stopped_behind(root, 8, accumulate_grad_batches=2)
    again = Watch()
    fit(root, again, resume=checkpoint, accumulate_grad_batches=2)
    assert again.seen == resumed.seen
    assert torch.load(root / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 6


def test_a_checkpoint_of_an_exception_begins_its_batch_again(root: Path) -> None:
    """As Lightning's OnExceptionCheckpoint saves it: a batch was on its way, and no weight had learnt from it."""

    class Fails(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 6:
                raise MemoryError

    class Keeps(OnExceptionCheckpoint):
        def teardown(self, *args: Any, **kwargs: Any) -> None:
            """Lightning's removes what it has saved."""

    first, second = Watch(), Watch()
    with pytest.raises(MemoryError):
        fit(root, first, callbacks=[Fails(), Keeps(root)])
    runner = fit(root, second, resume=root / "on_exception.ckpt")
    assert [len(first.seen), len(second.seen), runner.global_step] == [6, 4, 10]
    assert len(set(first.epoch(1) + second.epoch(1))) == 10


def test_the_line_of_a_resumed_epoch_says_what_it_covers(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("octvideo.training.module.time.monotonic", lambda: 86_400.0)
    checkpoint = stopped_behind(root, 7)
    capsys.readouterr()
    fit(root, resume=checkpoint)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert line.startswith("epoch 2/2  (resumed: the last 3 of 5 batches alone)  train/loss 0.")
    assert line.endswith("  0 s")


def test_a_run_resumed_behind_the_last_batch_of_an_epoch_has_no_figures_of_it(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = KeepAll()
    fit(root, plugins=saved, check_val_every_n_epoch=2)
    (best,) = (path for path in saved.kept if path.name.endswith("best.ckpt"))
    capsys.readouterr()
    runner = fit(root, resume=best, check_val_every_n_epoch=2)
    assert capsys.readouterr().out.splitlines()[-1] == "epoch 2/2 was over before the resume"
    assert "train/loss" not in runner.callback_metrics
    assert differences(root / "run/checkpoints/last.ckpt", saved.kept[-1]) == []


def order_of(epoch: int) -> list[int]:
    return [index for _, index in next(iter(started(TrainingBatches(VIDEOS, VIDEOS, seed=0), epoch)))]


def started(batches: TrainingBatches, epoch: int) -> TrainingBatches:
    batches.set_epoch(epoch)
    return batches


@pytest.mark.parametrize("resumed", [False, True])
def test_the_bound_on_unreadable_videos_is_that_of_the_whole_epoch(root: Path, resumed: bool) -> None:
    order = order_of(0)
    bad = {order[1], order[7]}
    write_list(root, "train", [f"{'bad' if number in bad else 'train'}{number}.mp4" for number in range(VIDEOS)])
    bound = {"model": {"max_unreadable_fraction": 0.1}}
    checkpoint = stopped_behind(root, 2, max_steps=2, **bound) if resumed else None
    with pytest.raises(UserError, match=r"^2 of 10 videos of this epoch could not be read, more than the 10\.0% that"):
        fit(root, resume=checkpoint, **bound)


def test_the_progress_bar_of_a_resumed_epoch_is_there_from_the_start(root: Path) -> None:
    class Bar(ProgressBar):
        def on_train_batch_start(self, *args: Any) -> None:
            task = self.progress.tasks[self.train_progress_bar_id]
            shown.append((task.description.strip(), task.completed, task.total))

    shown: list[tuple[str, float, float | None]] = []
    fit(root, resume=stopped_behind(root, 7), callbacks=[Bar()], enable_progress_bar=True)
    assert shown[0] == ("Epoch 2/2", 2, 5) and len(shown) == 3


# ── the best checkpoint ─────────────────────────────────────────────────────────────────────────────────────


def test_a_run_that_was_moved_keeps_its_best_checkpoint(
    root: Path, worse: Path, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    left = (worse / "best.ckpt").read_bytes()
    moved = root / "elsewhere"
    (moved / "run").parent.mkdir()
    (root / "run").rename(moved / "run")
    for name in ("train.txt", "val.txt", "names.txt", *(file.name for file in root.glob("*.mp4"))):
        shutil.copy(root / name, moved)
    fit(moved, resume=moved / "run/checkpoints/last.ckpt", max_epochs=3)
    assert (moved / "run/checkpoints/best.ckpt").read_bytes() == left and not worse.exists()
    kept = best_of(moved)
    assert kept["best_model_score"].item() == pytest.approx(0.9)
    best = str((moved / "run/checkpoints/best.ckpt").resolve())
    assert [kept["best_model_path"], *kept["best_k_models"]] == [best, best]
    assert not any("dirpath has changed" in str(warning.message) for warning in recwarn)
    assert "best" not in caplog.text


def test_a_run_from_anothers_checkpoint_chooses_its_own_best_and_says_so(
    root: Path, worse: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, left = root / "first", (worse / "best.ckpt").read_bytes()
    (root / "run").rename(first)
    fit(root, resume=first / "checkpoints/last.ckpt", max_epochs=3)
    assert best_of(root)["best_model_score"].item() == pytest.approx(0.6)
    assert torch.load(worse / "best.ckpt", weights_only=True)["epoch"] == 2
    assert (first / "checkpoints/best.ckpt").read_bytes() == left
    best = worse.resolve() / "best.ckpt"
    assert f"the best val/top1 starts anew: it was 0.9 ({best}), and there is no {best}" in caplog.messages


# ── other settings ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("before", "behind", "after", "rest"),
    [
        pytest.param(
            (4, 1), 1, (2, 1), 3, marks=pytest.mark.slow
        ),  # a smaller batch after one that did not fit into memory: 7 videos are 3 batches of 2
        ((4, 1), 1, (2, 2), 3),  # and the same number of videos for each step
        pytest.param((4, 1), 1, (1, 1), 7, marks=pytest.mark.slow),
        ((2, 1), 4, (3, 1), 1),  # 8 are seen
        ((2, 2), 2, (3, 1), 2),
        ((1, 3), 9, (4, 2), 1),  # 2 are left: one batch that is not full
        pytest.param((2, 1), 2, (8, 1), 1, marks=pytest.mark.slow),
    ],
)
def test_another_batch_size_goes_on_with_the_rest_each_once(
    root: Path,
    before: tuple[int, int],
    behind: int,
    after: tuple[int, int],
    rest: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = Watch(), Watch()
    size, window = before
    epoch = VIDEOS // size  # batches
    stopped = {"data": {"batch_size": size}, "accumulate_grad_batches": window, "max_epochs": 4}
    checkpoint = stopped_behind(root, epoch + behind, first, **stopped)
    size, window = after
    fit(root, second, resume=checkpoint, data={"batch_size": size}, accumulate_grad_batches=window, max_epochs=4)
    seen = first.epoch(1) + second.epoch(1)
    assert len(second.seen) == rest + 2 * (VIDEOS // size)
    assert len(set(seen)) == len(seen) > VIDEOS - size
    assert len(second.epoch(2)) == len(set(second.epoch(2))) == VIDEOS // size * size
    # The learning rate follows the share of the epoch's steps that is over.
    batches = VIDEOS // size
    epochs = 1 + (batches - rest) // window / math.ceil(batches / window)
    assert second.rates[0] == pytest.approx(0.1 * Schedule("cosine").factor(epochs, total_epochs=4))
    assert "anew" not in caplog.text


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("list", "its checkpoint was trained on another list of videos, or with another quarantine list"),
        ("quarantine", "its checkpoint was trained on another list of videos, or with another quarantine list"),
        ("seed", "its checkpoint was trained with seed 0, now it is 5"),
        ("version", "its checkpoint is of an older version, which drew the order of videos otherwise"),
    ],
)
def test_what_can_not_go_on_starts_the_epoch_anew_and_says_so(
    root: Path, what: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = stopped_behind(root, 7)
    data: dict[str, Any] = {}
    if what == "list":
        write_list(root, "train", [f"train{number}.mp4" for number in reversed(range(VIDEOS))])
    elif what == "quarantine":
        (root / "quarantine.txt").write_text("train3.mp4\tbroken\n")
        data["quarantine"] = "quarantine.txt"
    elif what == "seed":
        data["seed"] = 5
    else:
        content = torch.load(checkpoint, weights_only=True)
        content["loops"]["fit_loop"]["state_dict"]["combined_loader"] = [{"epoch": 1, "batches": 2}]
        torch.save(content, checkpoint)
    watch = Watch()
    runner = fit(root, watch, resume=checkpoint, data=data)
    assert f"epoch 2 starts anew: {reason}" in caplog.messages
    assert [epoch for epoch, _ in watch.seen] == [1] * 5 and len(set(watch.epoch(1))) == 10
    assert runner.global_step == 12


def test_a_data_set_that_has_moved_is_the_same_list(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Watch(), Watch()
    checkpoint = stopped_behind(root, 7, first)
    shutil.copytree(root, root / "moved" / "here", ignore=lambda *_: ["run", "moved"])
    fit(root / "moved" / "here", second, resume=checkpoint)
    assert sorted(first.epoch(1) + second.epoch(1)) == sorted(order_of(1)[:10])
    assert "epoch 2 starts anew" not in caplog.text


def test_an_epoch_that_was_over_is_over_with_any_batch_size(root: Path) -> None:
    """Saved behind its last batch: an epoch of no batch must not follow."""
    for size in (1, 3, 4):
        watch = Watch()
        fit(root, watch, resume=stopped_behind(root, 5), data={"batch_size": size})
        assert [epoch for epoch, _ in watch.seen] == [1] * (VIDEOS // size), size
