"""mixup and CutMix against timm's, with the same shares, boxes and partners."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup, cutmix_bbox_and_lam, mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.training import VideoClassifier
from octvideo.training.mixing import Mix, Mixing, cut_mix

N, K, T, SIZE = 6, 4, 3, (20, 17)


def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    video = torch.randint(256, (N, 3, T, *SIZE), dtype=torch.uint8, generator=draw)
    return video, torch.randint(K, (N,), generator=draw)


def of_timm(video: Tensor, labels: Tensor, seed: int, **settings: float) -> tuple[Tensor, Tensor]:
    """timm knows no frames: they are channels to it, as its boxes go through all channels."""
    np.random.seed(seed)
    x, targets = Mixup(**settings, label_smoothing=0.1, num_classes=K)(video.flatten(1, 2).float(), labels)
    return x.view(video.shape), targets


@pytest.mark.parametrize("seed", range(8))
def test_mixup_is_that_of_timm(seed: int) -> None:
    video, labels = batch()
    expected, targets = of_timm(video, labels, seed, mixup_alpha=0.8)
    np.random.seed(seed)
    np.random.rand()
    mix = Mix(float(np.random.beta(0.8, 0.8)), torch.arange(N).flip(0))  # its partners
    torch.testing.assert_close(mix.clips(video), expected)
    assert_loss_of_timm(mix.targets(F.one_hot(labels, K).float()), targets)


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_is_that_of_timm(seed: int) -> None:
    video, labels = batch()
    expected, targets = of_timm(video, labels, seed, mixup_alpha=0.0, cutmix_alpha=1.0)
    np.random.seed(seed)
    np.random.rand()
    share = float(np.random.beta(1.0, 1.0))
    y, x = (int(np.random.randint(0, side, size=None)) for side in SIZE)
    mix = cut_mix(share, torch.arange(N).flip(0), height=SIZE[0], width=SIZE[1], y=y, x=x)
    assert torch.equal(mix.clips(video).float(), expected) and mix.clips(video).dtype == torch.uint8
    np.random.seed(seed)
    np.random.rand()
    np.random.beta(1.0, 1.0)
    (top, bottom, left, right), kept = cutmix_bbox_and_lam((N, 3, *SIZE), share)
    assert mix.box == (top, bottom, left, right) and mix.share == pytest.approx(kept)
    assert_loss_of_timm(mix.targets(F.one_hot(labels, K).float()), targets)


def assert_loss_of_timm(ours: Tensor, smoothed: Tensor) -> None:
    """With label smoothing in the loss, as training has it; timm smooths targets before it mixes them."""
    logits = torch.randn(N, K, generator=torch.Generator().manual_seed(1))
    expected = SoftTargetCrossEntropy()(logits, smoothed)
    torch.testing.assert_close(F.cross_entropy(logits, ours, label_smoothing=0.1), expected)


def test_draws_are_spread_as_said() -> None:
    video = torch.zeros(8, 3, 1, 32, 32, dtype=torch.uint8)
    torch.manual_seed(0)
    mixes = [Mixing(0.8, 1.0, prob=0.8, switch_prob=0.25).draw(video) for _ in range(1500)]
    mixed = [mix for mix in mixes if mix is not None]
    assert abs(len(mixed) / 1500 - 0.8) < 0.04
    assert abs(sum(mix.box is not None for mix in mixed) / len(mixed) - 0.25) < 0.04
    assert all(sorted(mix.other.tolist()) == list(range(8)) for mix in mixed)
    added = torch.tensor([mix.share for mix in mixed if mix.box is None])
    assert abs(float(added.mean()) - 0.5) < 0.04
    assert abs(float(added.var()) - 1 / (4 * (2 * 0.8 + 1))) < 0.012  # of Beta(.8, .8)
    assert Mixing().draw(video) is None
    cuts = [Mixing(0.0, 1.0).draw(video) for _ in range(20)]
    assert all(mix is not None and mix.box is not None for mix in cuts)


def test_mixup_alone_draws_as_before_there_was_cutmix() -> None:
    torch.manual_seed(7)
    alpha = torch.tensor(0.4)
    share, other = float(torch.distributions.Beta(alpha, alpha).sample()), torch.randperm(5)
    torch.manual_seed(7)
    mix = Mixing(0.4).draw(torch.zeros(5, 3, 1, 4, 4))
    assert mix is not None and mix.share == share and torch.equal(mix.other, other) and mix.box is None


class Seen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.clips = nn.Linear(3, K), list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.clips.append(x.detach())
        return self.head(x.mean((2, 3, 4)))


def test_the_network_and_the_loss_get_the_mixed_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    module = VideoClassifier(Seen(), cutmix_alpha=1.0, label_smoothing=0.1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    monkeypatch.setattr(VideoClassifier, "trainer", type("T", (), {"num_training_batches": 1}))
    video, labels = batch()
    torch.manual_seed(3)
    mix = module.mixing.draw(video)
    assert mix is not None and mix.box is not None and 0 < mix.share < 1
    torch.manual_seed(3)
    given = {"video": video, "label": labels, "index": labels, "path": list("abcdef"), "failures": []}
    loss = module.training_step(given, 0)  # type: ignore[arg-type]
    (seen,) = module.network.clips
    torch.testing.assert_close(seen * 255, mix.clips(video).float())
    one = mixup_target(labels, K, 1.0, 0.1)
    expected = SoftTargetCrossEntropy()(module.network(seen), mix.share * one + (1 - mix.share) * one[mix.other])
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cutmix_alpha": -1.0}, r"model\.cutmix_alpha: got -1\.0, expected 0 or more"),
        ({"mixup_alpha": float("nan")}, r"model\.mixup_alpha: got nan"),
        ({"mix_prob": 1.5}, r"model\.mix_prob: got 1\.5, expected 0 to 1"),
        ({"mix_switch_prob": -0.1}, r"model\.mix_switch_prob: got -0\.1"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VideoClassifier(Seen(), **settings)  # type: ignore[arg-type]
