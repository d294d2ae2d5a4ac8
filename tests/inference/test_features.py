"""Features: what an ordinary hook on the ordinary network reads, averaged by hand, for every kind of network."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.inference import Predictor
from octvideo.inference.feature_network import feature_network, list_layers
from octvideo.inference.features import FeatureExtractor
from octvideo.models import c2d_small, frame_network, i3d_small, slowfast_small
from octvideo.models.library import FrameNetwork
from octvideo.octave import Octave, merge
from octvideo.video import VideoArray, ViewSettings

VIEWS = ViewSettings(clip_frames=4, frame_stride=2, num_clips=2, num_crops=3, short_side_px=32, crop_px=32)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "c2d": lambda: c2d_small(3, width=8, zero_init_last_norm=False),
    "i3d": lambda: i3d_small(3, width=8, zero_init_last_norm=False),
    "octave": lambda: i3d_small(3, 0.25, width=8, zero_init_last_norm=False),
    "slowfast": lambda: slowfast_small(3, 0.25, width=8, frame_ratio=2, zero_init_last_norm=False),
    "frames": lambda: FrameNetwork(torchvision.models.shufflenet_v2_x0_5(num_classes=3)),
    "octave frames": lambda: frame_network("torchvision:resnet18", 3, 0.25),
}
CLIP = (3, 4, 32, 32)


@functools.cache
def network_of(name: str) -> nn.Module:
    """Not to be changed."""
    torch.manual_seed(1)
    network = NETWORKS[name]()
    if name == "frames":  # torchvision's ShuffleNet, as it is made, gives features of size 1e-5
        for module in network.train().modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            network(torch.randn(8, *CLIP))
    return network.eval()


def predictor_of(name: str, **how: Any) -> Predictor:
    return Predictor(network_of(name), ["a", "b", "c"], views=how.pop("views", VIEWS), device="cpu", **how)


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """Noise, of which every frame is another: 2 s."""
    coarse = torch.rand(20, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    return (nn.functional.interpolate(coarse, (40, 56)) * 255).byte().permute(0, 2, 3, 1).contiguous()


class Hook:
    """Keeps what a module gave or read last."""

    def __init__(self, network: nn.Module, name: str) -> None:
        self.values: list[Any] = []
        module = network.get_submodule(name.removesuffix(":input"))
        is_input = name.endswith(":input")
        module.register_forward_hook(lambda _, args, result: self.values.append(args[0] if is_input else result))


def mean_of(value: Any, num_clips: int, channel: int = 1) -> Tensor:
    """(N, C): over all other axes."""
    if isinstance(value, Octave):
        value = merge(value)
    if isinstance(value, list):
        return torch.cat([mean_of(one, num_clips, channel) for one in value], 1)
    value = value.movedim(channel, -1).double()
    return value.reshape(num_clips, -1, value.shape[-1]).mean(1).float()


def assert_close(got: Tensor, expected: Tensor) -> None:
    """To 1e-5 of their size, which is between .05 and 20."""
    size = float(expected.abs().max())
    assert 0.05 < size < 20
    torch.testing.assert_close(got, expected, atol=1e-5 * max(size, 1.0), rtol=0)


def clips_of(predictor: Predictor, frames: Tensor) -> Tensor:
    """All views of the frames as a video, normalised."""
    from octvideo.video import decode_views

    return predictor.normalise(decode_views(VideoArray(frames, 10.0), predictor.views).cut())


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in ("c2d", "octave", "frames") else name for name in NETWORKS],
)
def test_features_are_what_the_classifier_reads_of_the_views_of_each_window(name: str, frames: Tensor) -> None:
    predictor, network = predictor_of(name), copy.deepcopy(network_of(name))
    windows = list(predictor.features(frames, window_sec=1.0, stride_sec=0.5, fps=10.0))
    (head,) = (key for key, module in network.named_modules() if isinstance(module, nn.Linear))
    hook = Hook(network, f"{head}:input")
    assert [(w.first_frame, w.last_frame) for w in windows] == [(0, 9), (5, 14), (10, 19)]
    for window in windows:
        assert window.last_frame is not None
        clips = clips_of(predictor, frames[window.first_frame : window.last_frame + 1])
        with torch.no_grad():
            logits = network(clips).mean(0)
        expected = mean_of(hook.values[-1], len(clips), -1).mean(0)
        assert_close(window.features, expected)
        assert_close(network.get_submodule(head)(window.features), logits)
    assert (windows[0].features - windows[1].features).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("i3d", "blocks.4"),  # a stage, whose last layer is an activation
        ("i3d", "blocks.4.res_blocks.1.branch2.norm_c"),  # an addition and an activation in place follow
        ("i3d", "blocks.6.dropout"),  # in a module that is kept whole
        ("octave", "blocks.3"),  # a pair
        ("octave", "blocks.3.res_blocks.0.branch2.conv_b:input"),
        ("slowfast", "blocks.5:input"),  # two pathways
        ("slowfast", "blocks.2.multipathway_blocks.1"),
        ("frames", "image_network.stage3"),
        ("octave frames", "image_network.layer2"),
    ],
)
def test_any_layer_can_be_read(name: str, layer: str) -> None:
    network = copy.deepcopy(network_of(name))
    found = feature_network(network, CLIP, layer)
    clips = torch.randn(2, *CLIP)
    called = {"octave frames": "image_network.octave_ops.layer2_1_relu_1"}.get(name, layer)
    if layer in ("blocks.4", "blocks.3"):
        called = f"{layer}.res_blocks.1.activation"
    if layer == "blocks.2.multipathway_blocks.1":
        called = f"{layer}.res_blocks.1.activation"
    hook = Hook(network, called)
    predictor = Predictor(found.module, [], views=VIEWS, device="cpu") if not found.kept_whole else None
    with torch.no_grad():
        got = found.module(clips) if predictor is None else predictor.engine(clips)
        network(clips)
    assert found.kept_whole == (layer in ("blocks.6.dropout", "image_network.stage3"))
    assert_close(got, mean_of(hook.values[-1], 2))


def test_steps_are_averages_of_a_window_apart_and_have_their_times(frames: Tensor) -> None:
    """Of clips of 4 frames, every other one, I3D gives 2 steps; their mean is the pooled vector."""
    predictor = predictor_of("i3d")
    windows = list(predictor.features(frames, window_sec=1.0, stride_sec=1.0, pooled=False, fps=10.0))
    pooled = list(predictor.features(frames, window_sec=1.0, stride_sec=1.0, fps=10.0))
    assert [window.features.shape for window in windows] == [(4, 256), (4, 256)]
    for window, whole in zip(windows, pooled, strict=True):
        assert_close(window.features.mean(0), whole.features)
    # The second second: clips of the frames 10, 12, 14, 16 and 13, 15, 17, 19.
    assert windows[1].step_sec is not None
    np.testing.assert_allclose(windows[1].step_sec, [[1.0, 1.4], [1.3, 1.7], [1.4, 1.8], [1.7, 2.1]], atol=1e-6)
    clips = clips_of(predictor, frames[10:]).unflatten(0, (2, 3))
    network = copy.deepcopy(network_of("i3d"))
    hook = Hook(network, "blocks.5.res_blocks.1.activation")
    with torch.no_grad():
        network(clips.flatten(0, 1))
    steps = hook.values[0].mean((3, 4)).unflatten(0, (2, 3)).mean(1)  # (clips,C,T')
    assert_close(windows[1].features, torch.stack([steps[0, :, 0], steps[1, :, 0], steps[0, :, 1], steps[1, :, 1]]))


@pytest.mark.parametrize(("name", "steps", "layer"), [("slowfast", 2, "blocks.5:input"), ("frames", 4, "fc:input")])
def test_steps_of_two_pathways_and_of_images(name: str, steps: int, layer: str) -> None:
    """SlowFast has the slow pathway's steps; image networks have a step for each frame."""
    found = feature_network(network_of(name), CLIP, pooled=False)
    pooled = feature_network(network_of(name), CLIP)
    clips = torch.randn(2, *CLIP)
    assert found.layer.endswith(layer)
    with torch.no_grad():
        got = found.module(clips)
        assert got.shape[:2] == (2, steps)
        assert_close(got.mean(1), pooled.module(clips))


def test_frames_of_image_networks_are_computed_once(frames: Tensor) -> None:
    """As for scores: windows half over each other share them."""
    predictor = predictor_of("frames", views=replace(VIEWS, num_clips=1, num_crops=1, clip_frames=5))
    calls: list[int] = []
    windows = list(predictor.features(frames, window_sec=1.0, stride_sec=0.4, fps=10.0))
    (extractor,) = predictor.__dict__["_extractors"].values()
    assert extractor.timeline is not None and extractor.timeline.units is not None
    run = extractor.timeline._engine
    extractor.timeline._engine = lambda clips: (calls.append(len(clips)), run(clips))[1]
    assert len(list(predictor.features(frames, window_sec=1.0, stride_sec=0.4, fps=10.0))) == len(windows) == 4
    assert sum(calls) < 5 * len(windows)


def test_a_whole_video_has_the_views_of_a_test(frames: Tensor) -> None:
    predictor, network = predictor_of("octave"), copy.deepcopy(network_of("octave"))
    (found,) = predictor.features(frames, whole=True, fps=10.0)
    hook = Hook(network, "blocks.6.proj:input")
    with torch.no_grad():
        network(clips_of(predictor, frames))
    assert (found.start_sec, found.end_sec) == (0.0, 2.0)
    assert_close(found.features, mean_of(hook.values[0], 6, -1).mean(0))


@pytest.mark.slow
@pytest.mark.parametrize("layer", [None, "blocks.3"])
@pytest.mark.parametrize("engine", ["compile", "aot", "onnx", "openvino"])
def test_other_engines_give_the_same(engine: str, layer: str | None, frames: Tensor) -> None:
    needed = {"onnx": "onnxruntime", "openvino": "openvino"}
    if engine in needed:
        pytest.importorskip(needed[engine])
    how: dict[str, Any] = {"views": replace(VIEWS, num_clips=1, num_crops=1), "layer": layer, "device": "cpu"}
    times = {"window_sec": 1.0, "stride_sec": 1.0}
    eager, other = (
        FeatureExtractor(network_of("octave"), Predictor, engine=name, **how, **times) for name in ("eager", engine)
    )
    video = VideoArray(frames, 10.0)
    for got, expected in zip(other.of_video(video), eager.of_video(video), strict=True):
        torch.testing.assert_close(got.features, expected.features, atol=2e-5, rtol=1e-5)


def test_what_can_not_be_is_said(frames: Tensor) -> None:
    predictor = predictor_of("i3d")
    with pytest.raises(UserError, match=r"no layer 'blocks.7' in this network: did you mean blocks.6 .*--layer list"):
        predictor.features(frames, "blocks.7")
    with pytest.raises(UserError, match="whole videos have no window"):
        predictor.features(frames, whole=True, window_sec=1.0)
    with pytest.raises(UserError, match="per time step are of windows"):
        predictor.features(frames, whole=True, pooled=False)
    with pytest.raises(UserError, match=r"'blocks.1' has several values here: take one of the layers blocks.1.multi"):
        feature_network(network_of("slowfast"), CLIP, "blocks.1")
    with pytest.raises(UserError, match=r"has no nn\.Linear"):
        feature_network(nn.Conv3d(3, 4, 1), CLIP)
    with pytest.raises(UserError, match="which engine onnx can't look into"):
        FeatureExtractor(network_of("i3d"), Predictor, views=VIEWS, layer="blocks.6.dropout", engine="onnx")
    with pytest.raises(UserError, match="precision int8"):
        FeatureExtractor(network_of("i3d"), Predictor, views=VIEWS, precision="int8")
    exported = Predictor(predictor.engine, ["a", "b", "c"], views=VIEWS, source="export")
    with pytest.raises(UserError, match="an exported model holds no layers"):
        exported.features(frames)


def test_a_head_that_does_more_than_average_is_listened_to() -> None:
    """A classifier whose input can't be had by leaving it out: a softmax follows."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 32 * 32, 5), nn.Softmax(1))
    found = feature_network(network, CLIP)
    clips = torch.randn(2, *CLIP)
    with torch.no_grad():
        torch.testing.assert_close(found.module(clips), clips.flatten(1))
    assert found.kept_whole and found.layer == "1:input"


def test_layers_are_listed_with_their_shapes() -> None:
    rows = {name: (kind, shape) for name, kind, shape in list_layers(network_of("octave"), CLIP)}
    assert rows["blocks.0.conv"] == ("Conv3d", "8 x 4 x 16 x 16")
    assert rows["blocks.3.res_blocks.1.activation"] == ("OctMap", "48 x 2 x 4 x 4 and 16 x 2 x 2 x 2")
