"""A teacher's part in training: its targets, the loss, what is kept of it, and what is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.data.loading import MovableBatch
from octvideo.errors import UserError
from octvideo.models import frame_network, i3d_small, slowfast_small, video_network
from octvideo.models.weights import weights_in
from octvideo.training import VideoClassifier
from octvideo.training.distillation import HeadInput, ShareOfStep, Teacher

K = 3


class Tiny(nn.Module):
    """Clips to logits, by a norm, `width` features and dropout."""

    def __init__(self, width: int = 4, num_classes: int = K) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv3d(3, width, 1), nn.BatchNorm3d(width)
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu().mean((2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(x)))


SaveTeacher = Callable[..., nn.Module]


@pytest.fixture
def save_teacher(monkeypatch: pytest.MonkeyPatch) -> SaveTeacher:
    """Makes a network the one that any `teacher` names, with pixels of its own, and classes a, b, c."""

    def save(network: nn.Module, names: tuple[str, ...] = ("a", "b", "c")) -> nn.Module:
        block = {"network": {"class_path": "Tiny"}, "class_names": list(names)}
        block |= {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
        trained = copy.deepcopy(network).eval()
        monkeypatch.setattr("octvideo.training.distillation.trained_network", lambda path: (trained, block))
        return trained

    return save


def batch(n: int = 4, start: int = 0) -> MovableBatch:
    draw = torch.Generator().manual_seed(n + start)
    clips = torch.randint(0, 256, (n, 3, 2, 4, 4), dtype=torch.uint8, generator=draw)
    labels = torch.arange(n) % K
    return MovableBatch({"video": clips, "label": labels, "index": labels, "path": [], "failures": []})


class Data(L.LightningDataModule):
    """Clips of noise, of the classes c, a, b."""

    def __init__(self, batches: int = 2, labelled: bool = True) -> None:
        super().__init__()
        self.class_names = ["c", "a", "b"]
        self.batches, self.labelled = batches, labelled

    def train_dataloader(self) -> Any:
        batches = [batch(start=n) for n in range(self.batches)]
        for one in batches if not self.labelled else []:
            one["label"].fill_(-1)
        return torch.utils.data.DataLoader(batches, batch_size=None)


def fit(module: VideoClassifier, path: Any, data: Data | None = None, **trainer: Any) -> L.Trainer:
    settings = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    run = L.Trainer(accelerator="cpu", default_root_dir=path, enable_model_summary=False, **(settings | trainer))
    run.fit(module, datamodule=data or Data())
    return run


def by_hand(module: VideoClassifier, teacher: nn.Module, clips: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The divergence of scores and the distance of features, in double precision; the teacher's classes are a, b, c and
    the data's c, a, b.
    """
    mean, std = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.6, 0.7]]).double().view(2, 1, 3, 1, 1, 1)
    with torch.no_grad():
        teacher, pixels = copy.deepcopy(teacher).double().eval(), (clips.double() / 255 - mean) / std
        taught = (teacher(pixels)[:, [2, 0, 1]] / temperature).softmax(1)
        own = (module(clips).double() / temperature).softmax(1)
        divergence = (taught * (taught.log() - own.log())).sum(1).mean()
        x = (clips.float() - module.pixel_mean) / module.pixel_std
        features = module.network.features(x).double()
        projection = module.distillation.projection
        if projection is not None:
            features = features @ projection.weight.double().T
        cosine = F.cosine_similarity(features, teacher.features(pixels))
    return divergence * temperature**2, (2 - 2 * cosine).mean()


@pytest.mark.parametrize("width", [4, 6])
def test_the_loss_is_the_weighted_sum_of_its_parts(tmp_path: Any, save_teacher: SaveTeacher, width: int) -> None:
    teacher = copy.deepcopy(save_teacher(Tiny(width)))  # the one in use gets the data's order of classes
    weights: dict[str, float] = {"distill_logits": 0.7, "distill_temperature": 2.0, "distill_features": 3.0}
    module = VideoClassifier(Tiny(), teacher="t.ckpt", freeze="norms", lr=0.0, **weights)
    module.network.dropout.p = 0.0
    run = fit(module, tmp_path, Data(batches=1))
    clips, labels = batch()["video"], batch()["label"]
    divergence, distance = by_hand(module, teacher, clips, 2.0)
    expected = 0.7 * divergence + 3 * distance
    assert run.callback_metrics["train/distill_loss"] == pytest.approx(float(expected.detach()), rel=1e-5)
    own = F.cross_entropy(module(clips), labels)
    assert run.callback_metrics["train/loss"] == pytest.approx(float((0.3 * own + expected).detach()), rel=1e-5)
    assert (module.distillation.projection is None) == (width == 4)


def test_the_student_becomes_its_teacher_without_labels(tmp_path: Any, save_teacher: SaveTeacher) -> None:
    teacher = Tiny()
    save_teacher(teacher)
    module = VideoClassifier(copy.deepcopy(teacher), teacher="t.ckpt", distill_logits=1.0, lr=1.0)
    module.network.head = nn.Linear(4, K)
    run = fit(module, tmp_path, Data(4, labelled=False), max_epochs=12)
    assert run.callback_metrics["train/distill_loss"] < 0.02
    assert run.callback_metrics["train/loss"] == run.callback_metrics["train/distill_loss"]
    assert "train/top1" not in run.callback_metrics and not module.reads_labels


def test_of_the_teacher_nothing_is_kept_or_trained(tmp_path: Any, save_teacher: SaveTeacher) -> None:
    teacher = save_teacher(Tiny(6))
    before = copy.deepcopy(teacher.state_dict())
    module = VideoClassifier(Tiny(), teacher="t.ckpt", distill_features=1.0, mixup_alpha=0.4, lr=0.1)
    projection = module.distillation.projection.weight.clone()
    run = fit(module, tmp_path, gradient_clip_val=1.0, accumulate_grad_batches=2)
    run.save_checkpoint(tmp_path / "s.ckpt")
    content = torch.load(tmp_path / "s.ckpt", weights_only=True)
    beside = {key for key in content["state_dict"] if key.startswith("distillation")}
    assert beside == {"distillation.projection.weight"}
    assert set(weights_in(content, source="").tensors) == set(Tiny().state_dict())
    trained = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in [*module.network.parameters(), module.distillation.projection.weight]}
    assert not torch.equal(module.distillation.projection.weight, projection)
    order = [2, 0, 1]
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key][order] if key.startswith("head") else before[key]), key
    assert not teacher.training and module.network.training
    # The checkpoint tests without a teacher.
    alone = VideoClassifier(Tiny())
    given = {key: batch()[key] for key in ("label", "index", "failures")}
    views = MovableBatch(given | {"video": batch()["video"][:, None], "path": ["x"] * 4})
    loader = torch.utils.data.DataLoader([views], batch_size=None)
    run = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    run.test(alone, loader, ckpt_path=str(tmp_path / "s.ckpt"), verbose=False, weights_only=True)
    assert torch.equal(alone.network.head.weight, module.network.head.weight)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_every_precision_is_taught(tmp_path: Any, save_teacher: SaveTeacher, precision: Any) -> None:
    teacher = save_teacher(Tiny(6))
    module = VideoClassifier(Tiny(), teacher="t.ckpt", distill_features=1.0, channels_last=True)
    run = fit(module, tmp_path, precision=precision)
    assert torch.isfinite(run.callback_metrics["train/distill_loss"])
    dtypes = {"bf16-true": torch.bfloat16, "64-true": torch.float64}
    assert teacher.conv.weight.dtype == dtypes.get(precision, torch.float32)
    assert module.distillation.projection.weight.dtype == module.distillation.teacher.mean.dtype == torch.float32


def test_compiled_networks_give_their_features(
    tmp_path: Any, save_teacher: SaveTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        compiled.append(len(inputs))
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, **options: compile_(run, backend=backend))
    teacher, losses = Tiny(6), []
    for compile in (False, True):
        save_teacher(teacher)
        torch.manual_seed(0)
        module = VideoClassifier(Tiny(), teacher="t.ckpt", distill_features=1.0, compile=compile, seed=3)
        losses.append(fit(module, tmp_path).callback_metrics["train/distill_loss"])
    assert len(compiled) == 2
    torch.testing.assert_close(*losses)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "i3d": lambda: i3d_small(K, 0.25, width=8),
    "slowfast": lambda: slowfast_small(K, width=8, frame_ratio=2),
    "resnet18": lambda: frame_network("torchvision:resnet18", K, 0.25),  # DropoutLinear
    "mobilenet_v2": lambda: frame_network("torchvision:mobilenet_v2", K),
    "r3d_18": lambda: video_network("torchvision:r3d_18", K),
    "x3d": lambda: video_network("pytorchvideo:x3d_xs", K),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("i3d", "slowfast") else pytest.mark.slow) for n in NETWORKS]
)
def test_features_are_what_the_classifier_reads_before_dropout(name: str, save_teacher: SaveTeacher) -> None:
    """In the form that learns, and in that which teaches."""
    network = NETWORKS[name]().eval()
    teacher = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    read, (*_, head) = HeadInput(network), (m for m in network.modules() if isinstance(m, nn.Linear))
    clips = torch.randint(0, 256, (2, 3, 4, 64, 64), dtype=torch.uint8)
    mean, std = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.6, 0.7]]).view(2, 1, 3, 1, 1, 1)
    with torch.no_grad():
        network((clips / 255 - mean) / std)
        features = read.take(2)
        logits = network.eval()((clips / 255 - mean) / std)
    assert features.shape == (2, head.in_features)
    torch.testing.assert_close(F.linear(features, head.weight, head.bias), logits)
    save_teacher(teacher)
    module = Teacher("t.ckpt", channels_last=False, compile=False, keeps_features=True)
    torch.testing.assert_close(module(clips), (logits, features), rtol=1e-3, atol=1e-4)


def test_another_teacher_of_other_classes_teaches_by_features_alone(tmp_path: Any, save_teacher: SaveTeacher) -> None:
    save_teacher(Tiny(num_classes=2), ("a", "x"))
    told = r"t\.ckpt was trained on other classes than the data \(with 'x', without 'c', 'b'\): its logits mean nothing"
    with pytest.raises(UserError, match=told):
        fit(VideoClassifier(Tiny(), teacher="t.ckpt"), tmp_path)
    module = VideoClassifier(Tiny(), teacher="t.ckpt", distill_logits=0.0, distill_features=1.0)
    run = fit(module, tmp_path)
    assert 0 < run.callback_metrics["train/distill_loss"] < run.callback_metrics["train/loss"]
    with pytest.raises(UserError, match="2 classes, the student has 3"):
        VideoClassifier(Tiny(), teacher="t.ckpt").distillation.check_classes([], K)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"distill_logits": -1.0}, r"model\.distill_logits: got -1\.0, expected 0 or more"),
        ({"distill_features": float("nan")}, r"model\.distill_features: got nan"),
        ({"distill_temperature": 0.0}, r"model\.distill_temperature: got 0\.0, expected more than 0"),
        ({"distill_logits": 0.0}, "nothing is learnt from it where model.distill_logits and model.distill_features"),
        ({"distill_logits": 2.0}, r"1 - 2 can't be the labels' weight: give model\.label_weight"),
        ({"label_weight": -0.5}, r"model\.label_weight: got -0\.5"),
        ({"precise_bn": -1}, r"model\.precise_bn: got -1"),
    ],
)
def test_weights_that_mean_nothing_are_refused(save_teacher: SaveTeacher, settings: dict[str, Any], told: str) -> None:
    save_teacher(Tiny())
    with pytest.raises(UserError, match=told):
        VideoClassifier(Tiny(), teacher="t.ckpt", **settings)


def test_no_such_teacher_is_one_line() -> None:
    with pytest.raises(UserError, match=r"no checkpoint at nowhere\.ckpt"):
        VideoClassifier(Tiny(), teacher="nowhere.ckpt")


def test_the_share_of_a_step_is_that_of_its_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, *(t for step in range(12) for t in (100.0 + 4 * step, 101.0 + 4 * step))])
    monkeypatch.setattr("octvideo.training.distillation.time.perf_counter", lambda: next(clock))
    share, cpu = ShareOfStep(), torch.device("cpu")
    said = []
    for _ in range(13):
        share.start(cpu)
        share.stop(cpu)
        said.append(share.said())
    assert [line for line in said if line] == ["the teacher takes 25 % of a step (steps measured: 10)"]
