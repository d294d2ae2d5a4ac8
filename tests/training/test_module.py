"""The LightningModule on its own, with a network small enough to compute by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from octvideo.batches import Failure
from octvideo.data.loading import MovableBatch
from octvideo.errors import UserError
from octvideo.evaluation.scoring import Scoring
from octvideo.models import i3d_small
from octvideo.training import VideoClassifier
from octvideo.training.checkpoint_block import make_block

K = 3


class Tiny(nn.Module):
    """Colours to logits, with a norm and a record of how many clips came at once."""

    def __init__(self, num_classes: int = K) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(3)
        self.head = nn.Linear(3, num_classes)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.head(self.norm(x).mean((2, 3, 4)))


def batch(n: int, *, views: int = 0, failures: int = 0, start: int = 0) -> MovableBatch:
    shape = (n, views, 3, 2, 4, 4) if views else (n, 3, 2, 4, 4)
    index = torch.arange(start, start + n)
    content = {
        "video": torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(start + n)),
        "label": index % K,
        "index": index,
        "failures": [Failure(f"bad{i}.mp4", "broken", 0) for i in range(failures)],
    }
    return MovableBatch(content | ({"path": [f"{i}.mp4" for i in index.tolist()]} if views else {}))


def trainer(path, **kwargs: Any) -> L.Trainer:
    kwargs = {"max_epochs": 1, "logger": False, "enable_checkpointing": False} | kwargs
    return L.Trainer(
        accelerator="cpu",
        default_root_dir=path,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


def loader(batches: list[MovableBatch]) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(batches, batch_size=None)


def test_normalisation_is_of_scaled_pixels() -> None:
    module = VideoClassifier(Tiny(), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).eval()
    clips = batch(2)["video"]
    x = (clips.double() / 255 - torch.tensor([0.1, 0.2, 0.3]).double().view(3, 1, 1, 1)) / torch.tensor(
        [0.5, 0.6, 0.7]
    ).double().view(3, 1, 1, 1)
    torch.testing.assert_close(module(clips), module.network(x.float()))


class TinyUnseen(Tiny):
    """Tiny without the record, which is no affair of a compiler's."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x).mean((2, 3, 4)))


def test_a_compiled_network_has_its_own_keys_and_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        ran.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    network, clips = TinyUnseen(), batch(2)["video"]
    module = VideoClassifier(copy.deepcopy(network), compile=True, channels_last=True)
    plain = VideoClassifier(network)
    torch.testing.assert_close(module(clips), plain(clips))
    assert ran and list(module.state_dict()) == list(plain.state_dict())
    copied = copy.deepcopy(module)
    torch.testing.assert_close(copied(clips), plain(clips))


@pytest.mark.parametrize(
    ("device", "fuse", "synchronises"),
    [("cuda", True, False), ("cuda", True, True), ("cuda", False, False), ("cpu", True, False)],
)
def test_on_cuda_the_network_is_fused_once(
    device: str, fuse: bool, synchronises: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = i3d_small(num_classes=3, alpha=0.25, width=8)
    module = VideoClassifier(network, fuse=fuse)
    module.trainer = L.Trainer(accelerator="cpu", logger=False)
    module.synchronises = synchronises
    parameters, printed = [*network.parameters()], []
    monkeypatch.setattr(VideoClassifier, "device", torch.device(device))
    monkeypatch.setattr(module, "print", printed.append)
    module.on_fit_start()
    module.on_validation_start()
    is_fused = device == "cuda" and fuse and not synchronises
    assert ("fused" in network.meta) == is_fused
    assert [str(line).startswith("28 of 29 batch norms are fused") for line in printed].count(True) == is_fused
    assert module.network is network and all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    module.synchronises = True  # the module's next fit has --trainer.sync_batchnorm
    module.on_fit_start()
    assert "fused" not in network.meta and not any("Fused" in type(part).__name__ for part in network.modules())


def test_a_rate_for_a_batch_needs_its_size(tmp_path) -> None:
    with pytest.raises(UserError, match=r"model.lr_batch_size needs data with a batch_size: give model.lr for"):
        trainer(tmp_path).fit(VideoClassifier(Tiny(), lr_batch_size=8), loader([batch(2)]))


def test_a_trained_module_has_its_averages(tmp_path) -> None:
    """For a test behind the fit; a checkpoint still has the weights beside them, and save_weights_only the averages."""
    module = VideoClassifier(Tiny(), ema_decay=0.9, lr=0.1)
    runner = trainer(tmp_path)
    runner.fit(module, loader([batch(2), batch(3), batch(4)]))
    runner.save_checkpoint(tmp_path / "all.ckpt")
    runner.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    whole, weights = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("all", "weights"))
    for content in (whole, weights):
        assert torch.equal(content["state_dict"]["network.head.weight"], module.network.head.weight)
        assert content["octvideo"]["averaged"]["updates"] == 3
    assert not torch.equal(whole["current_model_state"]["network.head.weight"], module.network.head.weight)


def test_sync_batchnorm_is_done_by_the_module(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a batch without a readable clip; Lightning replaces no norm; the next fit may be without it."""
    entered: list[int] = []

    @contextmanager
    def recorded() -> Iterator[None]:
        entered.append(len(module.network.seen))
        yield

    monkeypatch.setattr("octvideo.training.scoring_module.SynchronisedNorms", recorded)
    module = VideoClassifier(Tiny())
    clips = batch(2)["video"]
    two = trainer(tmp_path, strategy="ddp", devices=2, sync_batchnorm=True)
    one = trainer(tmp_path, strategy="ddp", devices=1, sync_batchnorm=True)
    for used, times in ((two, 1), (one, 0), (two, 1), (trainer(tmp_path), 0)):
        module.trainer = used
        module.setup("fit")
        module.train()(clips)
        assert len(entered) == times
        if times:
            assert used.strategy._layer_sync.apply(module) is module and type(module.network.norm) is nn.BatchNorm3d
            module._empty_loss(clips[:0]).backward()
            assert len(entered) == 2 and module.network.seen[-1] == 0
        entered.clear()
        module.eval()(clips)
        assert not entered


def test_what_torch_cannot_compile_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        raise RuntimeError("no C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    module = VideoClassifier(TinyUnseen(), compile=True)
    told = r"model.compile: torch can't compile here \(no C\+\+ compiler found\); train with model.compile false$"
    with pytest.raises(UserError, match=told):
        module(batch(2)["video"])
    # What the network itself raises is not the compiler's.
    with pytest.raises(RuntimeError, match="size") as other:
        VideoClassifier(TinyUnseen())(torch.zeros(2, 4, 2, 4, 4, dtype=torch.uint8))
    assert not isinstance(other.value, UserError)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_views_in_chunks_give_the_mean_of_their_scores(chunk: int) -> None:
    module = VideoClassifier(Tiny(), views_per_chunk=chunk).eval()
    videos = batch(2, views=3)["video"]
    with torch.no_grad():
        expected = torch.stack(
            [torch.stack([module(v[None])[0].softmax(0) for v in video]).mean(0) for video in videos]
        )
        module.network.seen.clear()
        scores = module.view_scores(videos)
    torch.testing.assert_close(scores, expected)
    assert max(module.network.seen) <= chunk and sum(module.network.seen) == 6


def test_thirty_views_are_chunks_of_one_size() -> None:
    module = VideoClassifier(Tiny()).eval()
    module.view_scores(batch(3, views=30)["video"])
    assert module.network.seen == [6] * 15


class Overwriting(TinyUnseen):
    """Logits and gradients lie in memory that the next call overwrites, as CUDA graphs have it."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[str, Tensor] = {}
        self.head.weight.register_hook(lambda gradient: self.kept("gradient", gradient))

    def kept(self, name: str, value: Tensor) -> Tensor:
        return self.memory.setdefault(name, torch.empty_like(value)).copy_(value).detach()

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if torch.is_grad_enabled() else self.kept("logits", logits)


@pytest.fixture
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compile mode is asked for, and the network stays as it is."""
    monkeypatch.setattr("octvideo.training.scoring_module.compile_module", lambda network, mode: None)


@pytest.mark.usefixtures("not_compiled")
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_logits_of_several_chunks_outlive_cuda_graphs(mode: Any) -> None:
    network = Overwriting()
    videos = batch(2, views=6)["video"]
    with torch.no_grad():
        expected = VideoClassifier(network, views_per_chunk=12).eval().view_scores(videos)
        network.memory.clear()
        scores = VideoClassifier(network, compile=mode, views_per_chunk=4).eval().view_scores(videos)
    torch.testing.assert_close(scores, expected)


class Cloning(Overwriting):
    """The same, in memory of its own each time."""

    def kept(self, name: str, value: Tensor) -> Tensor:
        return value.clone()


@pytest.mark.usefixtures("not_compiled")
def test_gradients_of_several_batches_outlive_cuda_graphs(tmp_path) -> None:
    weights = []
    for network in (Overwriting, Cloning):
        torch.manual_seed(0)
        module = VideoClassifier(network(), lr=0.1, compile="reduce-overhead")
        data = loader([batch(4, start=n) for n in range(3)])
        trainer(tmp_path, accumulate_grad_batches=3).fit(module, data)
        weights.append(module.network.head.weight)
    torch.testing.assert_close(*weights)


def test_no_video_gives_no_scores() -> None:
    scores = VideoClassifier(Tiny()).eval().view_scores(batch(0, views=3)["video"])
    assert scores.shape == (0, K)


def test_training_and_evaluation_pass_over_empty_batches(tmp_path) -> None:
    module = VideoClassifier(Tiny(), max_unreadable_fraction=1.0, on_unreadable="count")
    run = trainer(tmp_path)
    run.fit(module, loader([batch(2, failures=2), batch(0, failures=4)]), loader([batch(0, views=2, failures=1)]))
    assert run.callback_metrics["train/unreadable"] == 6
    assert run.callback_metrics["val/unreadable"] == 1
    assert torch.isfinite(run.callback_metrics["train/loss"])


def test_too_many_unreadable_videos_stop_training_early(tmp_path) -> None:
    module = VideoClassifier(Tiny(), max_unreadable_fraction=0.1)
    batches = [batch(2, failures=2), *[batch(4) for _ in range(3)]]
    with pytest.raises(UserError, match=r"2 of 16 videos of this epoch could not be read.*'bad0\.mp4': broken"):
        trainer(tmp_path).fit(module, loader(batches))


def test_evaluation_stops_at_an_unreadable_video(tmp_path) -> None:
    with pytest.raises(UserError, match=r"cannot read video 'bad0\.mp4': broken\. The test stopped"):
        trainer(tmp_path).test(VideoClassifier(Tiny()), loader([batch(2, views=2, failures=1)]), verbose=False)


def test_scores_of_a_test_are_kept_in_data_set_order(tmp_path) -> None:
    module = VideoClassifier(Tiny())
    batches = [batch(2, views=2, start=3), batch(3, views=2, start=0)]
    trainer(tmp_path).test(module, loader(batches), verbose=False)
    scores = module.gather_scores()
    assert list(scores.paths) == [f"{i}.mp4" for i in range(5)]
    assert list(scores.labels) == [0, 1, 2, 0, 1]
    with torch.inference_mode():
        expected = module.eval().view_scores(batches[1]["video"])
    torch.testing.assert_close(torch.as_tensor(scores.scores)[:3], expected, check_dtype=False)


def test_the_learning_rate_follows_the_schedule_inside_epochs(tmp_path) -> None:
    seen: list[float] = []

    class Record(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            seen.append(optimizer.param_groups[0]["lr"])

    module = VideoClassifier(Tiny(), lr=1.0, schedule="step", milestones=[0.5, 1.5], warmup_epochs=0.25)
    trainer(tmp_path, max_epochs=2, callbacks=[Record()]).fit(module, loader([batch(2)] * 4))
    assert seen == pytest.approx([0.001, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("batches", "window", "ends", "steps"),
    [
        (4, 1, {"max_epochs": 3}, 12),
        (4, 2, {"max_epochs": 3}, 6),
        (5, 2, {"max_epochs": 2}, 6),  # windows of 2, 2 and 1
        (5, 4, {"max_epochs": 3}, 6),
        (3, 8, {"max_epochs": 4}, 4),  # an epoch is less than a window
        (5, 2, {"max_epochs": -1, "max_steps": 6}, 6),
        (5, 2, {"max_epochs": -1, "max_steps": 7}, 7),  # ends within an epoch
        (5, 4, {"max_epochs": -1, "max_steps": 9}, 9),
        (4, 1, {"max_epochs": -1, "max_steps": 3}, 3),  # within the first epoch
        (5, 2, {"max_epochs": 2, "max_steps": 100}, 6),  # whichever comes first
        (5, 2, {"max_epochs": 100, "max_steps": 5}, 5),
        (9, 2, {"max_epochs": 2, "limit_train_batches": 5}, 6),
        (9, 4, {"max_epochs": -1, "max_steps": 5, "limit_train_batches": 5}, 5),
    ],
)
def test_the_cosine_ends_with_the_last_optimizer_step(
    tmp_path, batches: int, window: int, ends: dict[str, int], steps: int
) -> None:
    seen: list[float] = []

    class Record(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            seen.append(optimizer.param_groups[0]["lr"])

    run = trainer(tmp_path, accumulate_grad_batches=window, callbacks=[Record()], **ends)
    run.fit(VideoClassifier(Tiny(), lr=0.3), loader([batch(2)] * batches))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    expected = []
    for _ in range(steps):
        expected.append(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()
    assert run.global_step == steps
    assert seen == pytest.approx(expected)


@pytest.mark.parametrize("freeze", ["backbone", "norms"])
def test_frozen_norms_keep_their_statistics(tmp_path, freeze: Any) -> None:
    module = VideoClassifier(Tiny(), freeze=freeze, lr=0.1)
    before = {k: v.clone() for k, v in module.network.state_dict().items()}
    trainer(tmp_path).fit(module, loader([batch(4)] * 2), loader([batch(2, views=2)]))
    after = module.network.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"head.weight", "head.bias"}


def test_mixup_and_smoothing_train(tmp_path) -> None:
    module = VideoClassifier(Tiny(), mixup_alpha=0.4, label_smoothing=0.1, optimizer="adamw", channels_last=True)
    run = trainer(tmp_path)
    run.fit(module, loader([batch(4)] * 2))
    assert torch.isfinite(run.callback_metrics["train/loss"])


def test_another_number_of_classes_than_the_data_is_named(tmp_path) -> None:
    class Data(L.LightningDataModule):
        num_classes = 7

        def train_dataloader(self) -> Any:
            return loader([batch(2)])

    with pytest.raises(UserError, match=r"3 classes and the data 7: set model\.network\.init_args\.num_classes to 7"):
        trainer(tmp_path).fit(VideoClassifier(Tiny()), datamodule=Data())


def test_the_checkpoint_says_how_to_use_it_in_plain_types(tmp_path) -> None:
    network = Tiny()
    network.meta = {"built_from": {"class_path": "octvideo.models.i3d_small", "init_args": {"num_classes": K}}}
    run = trainer(tmp_path)
    run.fit(VideoClassifier(network, mean=(0.1, 0.2, 0.3)), loader([batch(2)]))
    run.save_checkpoint(tmp_path / "a.ckpt")
    block = torch.load(tmp_path / "a.ckpt", weights_only=True)["octvideo"]
    assert block["network"] == network.meta["built_from"]
    assert block["class_names"] == ["0", "1", "2"]
    assert block["format"] == 1 and block["mean"] == [0.1, 0.2, 0.3]


def test_a_checkpoint_of_another_network_is_refused_in_words(tmp_path) -> None:
    run = trainer(tmp_path)
    run.fit(VideoClassifier(Tiny()), loader([batch(2)]))
    run.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"does not fit the network: 2 weights differ, the first is network\.head"):
        trainer(tmp_path).test(
            VideoClassifier(Tiny(5)), loader([batch(2, views=1)]), ckpt_path=str(tmp_path / "a.ckpt")
        )


class Filmed(nn.Module):
    """A convolution over space and time, and a classifier."""

    def __init__(self, num_classes: int = K) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, (3, 3, 3), padding=1)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3, 4)))


@pytest.mark.parametrize("mean", [(0.45, 0.45, 0.45), (0.485, 0.456, 0.406)])
def test_starting_from_an_image_network_is_reported_once(tmp_path, capsys, mean: tuple[float, float, float]) -> None:
    image = nn.Sequential()
    image.conv, image.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 1000)
    torch.save(image.state_dict(), tmp_path / "image.pth")
    std = (0.225, 0.225, 0.225) if mean[0] == 0.45 else (0.229, 0.224, 0.225)
    module = VideoClassifier(Filmed(), mean=mean, std=std, init_weights=str(tmp_path / "image.pth"))
    trainer(tmp_path).test(module, loader([batch(2, views=1)]), verbose=False)
    torch.testing.assert_close(module.network.conv.weight.sum(2), image.conv.weight)
    said = [line for line in capsys.readouterr().out.splitlines() if "weight" in line or line.startswith("  ")]
    assert said[:2] == [
        f"Weights from {tmp_path / 'image.pth'}: 2 of 4 weights loaded, new head (1000 -> 3 classes)",
        "  1 inflated over time (average)",
    ]
    advice = [line for line in said[2:] if line.endswith("set model.mean and model.std to match")]
    assert len(advice) == (1 if mean[0] == 0.45 else 0)


def test_thresholds_move_with_the_rows_of_the_head() -> None:
    network = Tiny()
    module = VideoClassifier(network, loss="bce")
    held = Scoring("sigmoid", (0.1, 0.2, 0.3))
    names, ordered = ["sit", "stand", "drink"], ["drink", "sit", "stand"]
    block = make_block(network, names, views=None, mean=module.mean, std=module.std, scoring=held)
    checkpoint = {"state_dict": {key: value.clone() for key, value in module.state_dict().items()}, "octvideo": block}
    data = SimpleNamespace(class_names=ordered)
    module._trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.TESTING), ckpt_path=None, datamodule=data)  # type: ignore[assignment]
    module.on_load_checkpoint(checkpoint)
    assert module.scoring == Scoring("sigmoid", (0.3, 0.1, 0.2))
    torch.testing.assert_close(checkpoint["state_dict"]["network.head.bias"], network.head.bias[[2, 0, 1]])
