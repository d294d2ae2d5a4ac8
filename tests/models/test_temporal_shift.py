"""Temporal shift: the authors' arithmetic and places, of maps and pairs; streams against clips."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from octvideo.data.synthetic import CLASS_NAMES, OPPOSITES, DemoSettings, Split, frames_of
from octvideo.errors import UserError
from octvideo.inference.engines import build_engine
from octvideo.inference.feature_network import feature_network
from octvideo.inference.frame_units import find_frame_units
from octvideo.models import frame_network
from octvideo.models.checkpoint import build_network
from octvideo.models.library import FrameNetwork
from octvideo.models.streams import FrameStream
from octvideo.octave import (
    Octave,
    Partition,
    TemporalShift,
    add_temporal_shifts,
    count_cost,
    fuse_training,
    merge,
    octavize,
    prepare_inference,
    split,
)

SMALL = "timm:test_resnet"  # one block a stage; downsampled in three


def authors_shift(x: Tensor, n_segment: int, fold_div: int) -> Tensor:
    """From ops/temporal_shift.py of github.com/mit-han-lab/temporal-shift-module."""
    nt, c, h, w = x.size()
    x = x.reshape(nt // n_segment, n_segment, c, h, w)
    fold = c // fold_div
    out = torch.zeros_like(x)
    out[:, :-1, :fold] = x[:, 1:, :fold]
    out[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
    out[:, :, 2 * fold :] = x[:, :, 2 * fold :]
    return out.reshape(nt, c, h, w)


def small(shift: float = 0.125, alpha: Any = 0.0, **options: Any) -> FrameNetwork:
    """With norms that do something."""
    torch.manual_seed(0)
    network = frame_network(SMALL, 5, alpha, shift=shift, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.running_mean.normal_(std=0.2)
    assert isinstance(network, FrameNetwork)
    return network.eval()


def shifted_convs(network: FrameNetwork) -> list[str]:
    images: Any = network.image_network
    calls = [node for node in images.graph.nodes if node.op == "call_module"]
    readers = [(node, *node.users) for node in calls if isinstance(images.get_submodule(node.target), TemporalShift)]
    assert all(len(of_one) == 2 for of_one in readers)
    return [str(reader.target) for _, reader in readers]


@pytest.mark.parametrize("channels", [64, 17, 7])
def test_it_is_the_authors(channels: int) -> None:
    x = torch.randn(2 * 5, channels, 3, 4)
    shift = TemporalShift(channels, 1 / 8)
    for frames in (x, x.contiguous(memory_format=torch.channels_last)):
        y = shift(frames, 5)
        assert torch.equal(y, authors_shift(x, 5, 8))
        assert y.is_contiguous(memory_format=torch.channels_last) or channels == 7 or frames is x
    assert torch.equal(shift(x, 1)[:, 2 * (channels // 8) :], x[:, 2 * (channels // 8) :])


@pytest.mark.parametrize("low", [{6, 7}, {0, 3, 4}, set(range(8)), {1}])
def test_a_pair_shifts_the_channels_that_the_ordinary_map_would(low: set[int]) -> None:
    partition = Partition(tuple(n in low for n in range(8)))
    x = torch.randn(2 * 3, 8, 1, 1).expand(6, 8, 4, 6)  # constant in space: pooling loses nothing
    pair: Any = split(x, partition)
    y: Any = TemporalShift(partition, 0.25)(pair, 3)
    assert isinstance(y, Octave) and y.low.shape == pair.low.shape
    assert torch.equal(merge(y, partition), authors_shift(x, 3, 4))


def test_online_looks_back_only() -> None:
    """As the authors' online_demo/mobilenet_v2_tsm.py: the first eighth, from the frame before."""
    x = torch.randn(2 * 3, 16, 2, 2)
    y = TemporalShift(16, 0.125, online=True)(x, 3).unflatten(0, (2, 3))  # type: ignore[union-attr]
    clips = x.unflatten(0, (2, 3))
    assert torch.equal(y[:, 1:, :2], clips[:, :-1, :2]) and torch.equal(y[:, :, 2:], clips[:, :, 2:])
    assert not y[:, 0, :2].any()


@pytest.fixture
def only_names() -> Iterator[None]:
    with torch.device("meta"):
        yield


@pytest.mark.usefixtures("only_names")
@pytest.mark.parametrize("alpha", [0.0, 0.25])
def test_every_block_of_a_resnet_shifts(alpha: float) -> None:
    """The authors' place 'blockres'."""
    network: Any = frame_network("torchvision:resnet50", 5, alpha, shift=0.125)
    blocks = [f"layer{n + 1}.{block}" for n, depth in enumerate((3, 4, 6, 3)) for block in range(depth)]
    assert shifted_convs(network) == [f"{block}.conv1" for block in blocks]


@pytest.mark.usefixtures("only_names")
def test_inverted_residuals_with_a_shortcut_shift() -> None:
    """The authors' rule for MobileNetV2: use_res_connect."""
    published = torchvision.models.mobilenet_v2()
    having = [f"features.{n}.conv.0.0" for n, m in enumerate(published.features) if getattr(m, "use_res_connect", 0)]
    network: Any = frame_network("torchvision:mobilenet_v2", 1000, 0.25, shift=0.125)
    assert shifted_convs(network) == having and len(having) == 10
    assert network.state_dict().keys() == {f"image_network.{key}" for key in published.state_dict()}


@pytest.mark.usefixtures("only_names")
def test_it_costs_nothing() -> None:
    costs = [count_cost(frame_network(SMALL, 5, 0.25, shift=shift), (1, 3, 4, 64, 64)) for shift in (0.0, 0.125)]
    assert costs[0] == costs[1]


class Wrapped(nn.Module):
    def __init__(self, conv: nn.Module, num_frames: int) -> None:
        super().__init__()
        self.conv, self.num_frames = conv, num_frames

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(authors_shift(x, self.num_frames, 8))


def test_scores_are_those_of_the_authors_network() -> None:
    published = torchvision.models.resnet18(num_classes=5).eval()
    ours = frame_network("torchvision:resnet18", 5, shift=0.125).eval()
    ours.image_network.load_state_dict(published.state_dict(), strict=True)  # type: ignore[operator, union-attr]
    for stage in (published.layer1, published.layer2, published.layer3, published.layer4):
        for block in stage:
            block.conv1 = Wrapped(block.conv1, 3)
    clips = torch.randn(2, 3, 3, 40, 33)
    with torch.no_grad():
        expected = published(clips.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 3)).mean(1)
        torch.testing.assert_close(ours(clips), expected)


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("alpha", [0.25, 0.875])
def test_octave_and_ordinary_networks_mean_the_same(alpha: float, online: bool) -> None:
    """On frames without detail, which differ in time; at .875 most low channels are shifted ones."""
    shares = {f"layer{n}": alpha for n in range(1, 5)}
    networks = [small(0.25, share, online=online, downsample="pool").double() for share in (0.0, shares)]
    assert shifted_convs(networks[0]) == shifted_convs(networks[1])
    shifts = [module for module in networks[1].modules() if isinstance(module, TemporalShift)]
    assert any(sum(shift.low) > 0 for shift in shifts) == (alpha == 0.875)
    for network in networks:
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.padding_mode = "replicate"
    networks[1].load_state_dict(networks[0].state_dict(), strict=True)
    clips = torch.randn(2, 3, 4, 1, 1, dtype=torch.float64).expand(2, 3, 4, 49, 70)
    with torch.no_grad():
        torch.testing.assert_close(networks[1](clips), networks[0](clips))
        reversed_in_time = networks[1](clips.flip(2))
    assert not torch.allclose(reversed_in_time, networks[1](clips))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.875])
def test_a_stream_is_the_clip(alpha: float) -> None:
    network = small(alpha=alpha, online=True)
    stream = FrameStream(network)
    for _ in range(2):  # reset begins anew
        clips = torch.randn(2, 3, 5, 48, 33)
        with torch.no_grad():
            expected = network.frame_logits(clips)
        of_frames = torch.stack([stream.step(clips[:, :, t]) for t in range(5)], 1)
        torch.testing.assert_close(of_frames, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(of_frames.mean(1), network(clips), rtol=1e-5, atol=1e-5)
        with pytest.raises(UserError, match=r"shape \(1, 3, 48, 33\), expected \(2, 3, 48, 33\) as before: reset"):
            stream.step(clips[:1, :, 0])
        stream.reset()
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_streams_take_what_looks_back_only() -> None:
    with pytest.raises(UserError, match="takes channels of the next frame: train one with online: true"):
        FrameStream(small())
    network, frames = small(0.0), torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(FrameStream(network).step(frames), network(frames[:, :, None]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.25])
def test_it_pickles_prepares_fuses_and_is_built_again(alpha: float) -> None:
    network = small(alpha=alpha)
    clips = torch.randn(2, 3, 4, 48, 33)
    expected = network(clips).detach()
    again: Any = build_network({"network": network.meta["built_from"]}, "last.ckpt").eval()
    again.load_state_dict(network.state_dict(), strict=True)
    for clone in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network), again):
        assert torch.equal(clone(clips), expected)
    with torch.no_grad():
        torch.testing.assert_close(prepare_inference(network)(clips), expected, rtol=1e-4, atol=1e-5)
    fuse_training(again)
    torch.testing.assert_close(again(clips).detach(), expected, rtol=1e-4, atol=1e-5)
    again.train()(clips).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in again.parameters())


def test_frames_are_no_units_and_features_see_time() -> None:
    network = small()
    assert find_frame_units(network, 4, 32) is None and find_frame_units(small(0.0), 4, 32) is not None
    made = feature_network(network, (3, 4, 32, 32), pooled=False)
    clips = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        steps = made.module(clips)
        whole = nn.Linear(steps.shape[-1], 5)
        whole.load_state_dict({key: network.state_dict()[f"image_network.fc.{key}"] for key in ("weight", "bias")})
        torch.testing.assert_close(whole(steps), network.frame_logits(clips))


def test_a_converted_network_can_be_converted_again() -> None:
    """`octavize` merges before a shift that it finds in a network; what is computed is the same."""
    network = small()
    images = octavize(network.image_network, 0.0)
    clips = torch.randn(1, 3, 3, 40, 33)
    torch.testing.assert_close(FrameNetwork(images)(clips), network(clips))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.0, 0.25])
@pytest.mark.parametrize("engine", ["onnx", "openvino", "compile", "eager"])
def test_engines_run_it(engine: str, alpha: float) -> None:
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}.get(engine, "torch"))
    network = small(alpha=alpha)
    clips = torch.randn(2, 3, 4, 48, 48)
    run = build_engine(engine, network, example_shape=(2, 3, 4, 48, 48))
    with torch.no_grad():
        torch.testing.assert_close(run(clips), network(clips), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_it_is_compiled_for_any_number_of_frames() -> None:
    network = small(alpha=0.25)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for frames in (1, 2, 5):
            clips = torch.randn(2, 3, frames, 33, 33)
            torch.testing.assert_close(compiled(clips), network(clips), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": 0.6}, "shift: got 0.6, expected the share of channels in each direction, up to 0.5"),
        ({"shift": -0.1, "online": True}, "shift: got -0.1, expected the share .* up to 1"),
        ({"network": "torchvision:vgg11"}, "torchvision:vgg11: there is no residual block in this network"),
    ],
)
@pytest.mark.usefixtures("only_names")
def test_arguments_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        frame_network(**{"network": SMALL, "shift": 0.125, **options})
    with pytest.raises(ValueError, match="has temporal shifts already"):
        add_temporal_shifts(small().image_network, 0.125)  # type: ignore[arg-type]


def demo_clips(split: Split) -> tuple[Tensor, Tensor]:
    """The demo data set, rendered: uint8 (N, 16, 3, 64, 84), every other frame; and its classes."""
    clips, classes = [], []
    for index, name in enumerate(CLASS_NAMES):
        for n in range(DemoSettings().count(split)):
            frames = frames_of(DemoSettings(), split, name, n)[::2].permute(0, 3, 1, 2).float()
            clips.append(nn.functional.interpolate(frames, (64, 84), mode="bilinear", antialias=True).round().byte())
            classes.append(index)
    return torch.stack(clips), torch.tensor(classes)


def as_input(frames: Tensor) -> Tensor:
    """uint8 (N, T, 3, H, W) to what a network takes."""
    return ((frames.float() / 255 - 0.45) / 0.225).transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)


def trained_on_demo(clips: Tensor, classes: Tensor, *, shift: float, online: bool) -> FrameNetwork:
    torch.manual_seed(0)
    network = frame_network(SMALL, 8, shift=shift, online=online, dropout=0.0)
    network.to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.AdamW(network.parameters(), 4e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, 40 * (len(clips) // 16), pct_start=0.15)
    for _ in range(14):  # of the schedule's 40: enough
        for batch in torch.randperm(len(clips)).split(16):
            first, left = (int(torch.randint(end, ())) for end in (2, 21))
            x = as_input(clips[batch][:, first : first + 15 : 2, :, :, left : left + 64])
            nn.functional.cross_entropy(network(x), classes[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    assert isinstance(network, FrameNetwork)
    return network.eval()


@pytest.mark.slow
def test_shift_tells_opposite_motions_apart_and_nothing_else_does() -> None:
    """On the demo data set, whose pairs of classes hold the same frames in opposite order."""
    clips, classes = demo_clips("train")
    tested, expected = demo_clips("test")
    opposite = {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}
    other = torch.tensor([CLASS_NAMES.index(opposite[CLASS_NAMES[index]]) for index in expected])
    right = {}
    for form, (shift, online) in {"none": (0.0, False), "shift": (0.25, False), "online": (0.25, True)}.items():
        network = trained_on_demo(clips, classes, shift=shift, online=online)
        x = as_input(tested[:, ::2, :, :, 10:74])
        with torch.no_grad():
            logits = network(x)
        of_pair = logits.gather(1, expected[:, None]) > logits.gather(1, other[:, None])
        right[form] = of_pair.float().mean().item()
        if online:
            stream = FrameStream(network)
            of_frames = torch.stack([stream.step(x[:, :, t]) for t in range(x.shape[2])], 1)
            torch.testing.assert_close(of_frames.mean(1), logits, rtol=1e-4, atol=1e-4)
    assert right["shift"] >= 0.9 and right["online"] >= 0.8 and right["none"] <= 0.6, right
