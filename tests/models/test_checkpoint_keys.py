"""Names of torchvision, timm and PySlowFast, in files as those programs write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorchvideo.models.hub as hub
import torch
import torchvision
from pytorchvideo.layers.nonlocal_net import create_nonlocal
from pytorchvideo.models.x3d import create_x3d_bottleneck_block, create_x3d_res_block
from safetensors.torch import save_file
from torch import Tensor, nn

import octvideo.models as models
from octvideo.errors import UserError
from octvideo.models.checkpoint_keys import PYSLOWFAST, BlockLayout, match_keys, translate, without_shortcut_norms
from octvideo.models.weights import PixelScale, load_weights, read_weights, weights_in

OURS = PixelScale((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))


def random_state(network: nn.Module) -> dict[str, Tensor]:
    """Different numbers in every tensor, norms included."""
    return {
        key: torch.rand(value.shape) if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }


@pytest.fixture
def only_names() -> Iterator[None]:
    """Networks without numbers, which are built at once."""
    with torch.device("meta"):
        yield


def timm_resnet50() -> nn.Module:
    return pytest.importorskip("timm").create_model("resnet50", pretrained=False)


# -- torchvision and timm ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (timm_resnet50, "model.safetensors"),
        pytest.param(torchvision.models.resnet50, "resnet50.pth", marks=pytest.mark.slow),  # of the same keys
    ],
)
def test_image_checkpoints_load_into_octave_i3d(build: Callable[[], nn.Module], name: str, tmp_path: Path) -> None:
    state = random_state(build())
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    network = models.i3d_r50(num_classes=21, alpha=0.25)
    report = load_weights(network, read_weights(tmp_path / name), head="swap")
    assert str(report).splitlines() == [
        "318 of 320 weights loaded, new head (1000 -> 21 classes)",
        "  320 found under torchvision's and timm's names",
        "  53 inflated over time (average)",
    ]
    own = network.state_dict()
    # By hand, from the two definitions of a bottleneck.
    torch.testing.assert_close(own["blocks.0.conv.weight"].sum(2), state["conv1.weight"])
    for ours, theirs in {
        "blocks.0.norm.running_var": "bn1.running_var",
        "blocks.1.res_blocks.0.branch1_norm.weight": "layer1.0.downsample.1.weight",
        "blocks.3.res_blocks.3.branch2.norm_a.bias": "layer2.3.bn1.bias",
        "blocks.4.res_blocks.5.branch2.norm_b.running_mean": "layer3.5.bn2.running_mean",
        "blocks.5.res_blocks.2.branch2.norm_c.weight": "layer4.2.bn3.weight",
    }.items():
        assert torch.equal(own[ours], state[theirs]), ours
    for ours, theirs in {
        "blocks.1.res_blocks.0.branch1_conv.weight": "layer1.0.downsample.0.weight",
        "blocks.3.res_blocks.0.branch2.conv_a.weight": "layer2.0.conv1.weight",
        "blocks.4.res_blocks.1.branch2.conv_b.weight": "layer3.1.conv2.weight",
        "blocks.5.res_blocks.1.branch2.conv_c.weight": "layer4.1.conv3.weight",
    }.items():
        torch.testing.assert_close(own[ours].sum(2), state[theirs], msg=ours)


@pytest.mark.usefixtures("only_names")
def test_the_report_says_how_image_networks_saw_their_pixels() -> None:
    weights = weights_in(torchvision.models.resnet50().state_dict(), source="x")
    report = load_weights(models.c2d_r50(num_classes=5), weights, head="swap")
    assert report.pixel_advice(OURS) == (
        "image networks mostly are trained with mean [0.485, 0.456, 0.406] and std [0.229, 0.224, 0.225], here it "
        "is mean [0.45, 0.45, 0.45] and std [0.225, 0.225, 0.225]: set model.mean and model.std to match"
    )
    assert report.pixel_advice(PixelScale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))) is None
    same = load_weights(models.c2d_r50(5), weights_in(models.c2d_r50(5).state_dict(), source="x"), head="strict")
    assert same.pixel_advice(OURS) is None


def test_an_image_network_keeps_its_own_names() -> None:
    """Also within a module that runs it frame by frame, which the file knows nothing of."""
    state = random_state(torchvision.models.resnet50(num_classes=3))

    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image_network = torchvision.models.resnet50(num_classes=3)

    for network, prefix in ((torchvision.models.resnet50(num_classes=3), ""), (Frames(), "image_network.")):
        report = load_weights(network, weights_in(state, source="x"), head="strict")
        assert report.loaded == report.total == 320 and report.owner is None and not report.inflated
        assert all(torch.equal(value, state[key.removeprefix(prefix)]) for key, value in network.state_dict().items())


@pytest.mark.usefixtures("only_names")
def test_a_deeper_network_names_what_is_left_over() -> None:
    weights = weights_in(torchvision.models.resnet101().state_dict(), source="resnet101.pth")
    with pytest.raises(UserError, match=r"only in the file: layer3\.6\.conv1\.weight, layer3\.6\.bn1\.weight, "):
        load_weights(models.i3d_r50(1000), weights, head="strict")


@pytest.mark.usefixtures("only_names")
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121"])
def test_another_image_network_is_refused(name: str) -> None:
    weights = weights_in(getattr(torchvision.models, name)().state_dict(), source=f"{name}.pth")
    with pytest.raises(UserError, match=rf"weights from {name}\.pth do not fit: .* Expected at least half to match"):
        load_weights(models.i3d_r50(5), weights, head="swap")


# -- PySlowFast -------------------------------------------------------------------------------------------

# Written down from PySlowFast's modules (stem_helper.py, resnet_helper.py, head_helper.py): attribute by attribute.
I3D = {
    "s1.pathway0_stem.conv.weight": "blocks.0.conv.weight",
    "s1.pathway0_stem.bn.running_mean": "blocks.0.norm.running_mean",
    "s2.pathway0_res0.branch1.weight": "blocks.1.res_blocks.0.branch1_conv.weight",
    "s2.pathway0_res0.branch1_bn.bias": "blocks.1.res_blocks.0.branch1_norm.bias",
    "s2.pathway0_res0.branch2.a.weight": "blocks.1.res_blocks.0.branch2.conv_a.weight",
    "s2.pathway0_res0.branch2.a_bn.weight": "blocks.1.res_blocks.0.branch2.norm_a.weight",
    "s3.pathway0_res3.branch2.b.weight": "blocks.3.res_blocks.3.branch2.conv_b.weight",
    "s3.pathway0_res3.branch2.b_bn.running_var": "blocks.3.res_blocks.3.branch2.norm_b.running_var",
    "s4.pathway0_res5.branch2.c.weight": "blocks.4.res_blocks.5.branch2.conv_c.weight",
    "s5.pathway0_res2.branch2.c_bn.num_batches_tracked": "blocks.5.res_blocks.2.branch2.norm_c.num_batches_tracked",
    "head.projection.weight": "blocks.6.proj.weight",
    "head.projection.bias": "blocks.6.proj.bias",
}
# FuseFastToSlow in video_model_builder.py; the slow pathway is 0.
SLOWFAST = {
    "s1.pathway0_stem.conv.weight": "blocks.0.multipathway_blocks.0.conv.weight",
    "s1.pathway1_stem.bn.weight": "blocks.0.multipathway_blocks.1.norm.weight",
    "s1_fuse.conv_f2s.weight": "blocks.0.multipathway_fusion.conv_fast_to_slow.weight",
    "s1_fuse.bn.running_var": "blocks.0.multipathway_fusion.norm.running_var",
    "s2_fuse.conv_f2s.weight": "blocks.1.multipathway_fusion.conv_fast_to_slow.weight",
    "s4_fuse.bn.bias": "blocks.3.multipathway_fusion.norm.bias",
    "s2.pathway0_res0.branch2.a.weight": "blocks.1.multipathway_blocks.0.res_blocks.0.branch2.conv_a.weight",
    "s3.pathway1_res0.branch1.weight": "blocks.2.multipathway_blocks.1.res_blocks.0.branch1_conv.weight",
    "s5.pathway1_res2.branch2.c_bn.weight": "blocks.4.multipathway_blocks.1.res_blocks.2.branch2.norm_c.weight",
    "head.projection.weight": "blocks.6.proj.weight",
}


@pytest.mark.usefixtures("only_names")
@pytest.mark.parametrize(("network", "names"), [("i3d_r50", I3D), ("c2d_r50", I3D), ("slowfast_r50", SLOWFAST)])
def test_pyslowfasts_names_one_by_one(network: str, names: dict[str, str]) -> None:
    own = getattr(hub, network)(pretrained=False).state_dict().keys()
    assert match_keys(names, own).keys == names
    assert match_keys([f"model.{key}" for key in names], own).keys == {f"model.{k}": v for k, v in names.items()}


def pyslowfast_key(key: str) -> str:
    """The other way round, by other means than the table: pytorchvideo's name rebuilt step by step."""
    _, block, *rest = key.split(".")
    stage, path = f"s{int(block) + 1}", "0"
    if rest[0] == "proj":
        return f"head.projection.{rest[1]}"
    if rest[0] == "multipathway_fusion":
        return f"{stage}_fuse.{'conv_f2s' if rest[1].startswith('conv') else 'bn'}.{rest[2]}"
    if rest[0] == "multipathway_blocks":
        path, rest = rest[1], rest[2:]
    if rest[0] in ("conv", "norm"):
        return f"s1.pathway{path}_stem.{'conv' if rest[0] == 'conv' else 'bn'}.{rest[1]}"
    layers = rest[2:-1]
    kind, letter = layers[-1].split("_")
    if layers[0] == "branch2":
        layer = f"branch2.{letter}" + ("_bn" if kind == "norm" else "")
    else:
        layer = "branch1" + ("_bn" if letter == "norm" else "")
    return f"{stage}.pathway{path}_res{rest[1]}.{layer}.{rest[-1]}"


def test_a_whole_slowfast_checkpoint_loads(tmp_path: Path) -> None:
    network = hub.slowfast_r50(pretrained=False)
    state = random_state(network)
    theirs = {pyslowfast_key(key): value for key, value in state.items()}
    assert len(theirs) == len(state) == 662
    torch.save({"epoch": 196, "model_state": theirs, "cfg": "A: 1"}, tmp_path / "SLOWFAST_8x8_R50.pyth")
    report = load_weights(network, read_weights(tmp_path / "SLOWFAST_8x8_R50.pyth"), head="strict")
    assert str(report) == "662 of 662 weights loaded\n  662 found under PySlowFast's names"
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.usefixtures("only_names")
def test_slow_has_no_pool_among_its_blocks() -> None:
    own = hub.slow_r50(pretrained=False).state_dict().keys()
    assert match_keys(["s3.pathway0_res0.branch1.weight", "head.projection.bias"], own).keys == {
        "s3.pathway0_res0.branch1.weight": "blocks.2.res_blocks.0.branch1_conv.weight",
        "head.projection.bias": "blocks.5.proj.bias",
    }


def test_pyslowfasts_image_network_is_inflated() -> None:
    """R50_IN1K.pyth of its zoo has its names, and kernels over one image."""
    network = models.i3d_small(num_classes=3, width=4)
    state = random_state(network)
    theirs = {}
    for key, value in state.items():
        # Its stages have no pool between them.
        moved = re.sub(r"^blocks\.([345])", lambda found: f"blocks.{int(found[1]) - 1}", key)
        theirs[pyslowfast_key(moved)] = value.sum(2) if value.ndim == 5 else value
    report = load_weights(network, weights_in({"model_state": theirs}, source="R50_IN1K.pyth"), head="strict")
    assert report.loaded == report.total == len(state) and report.owner == "PySlowFast's"
    assert len(report.inflated) == 29 and report.pixels is not None and report.pixels.assumed
    for key, value in network.state_dict().items():
        image, same = (tensor.sum(2) if tensor.ndim == 5 else tensor for tensor in (value, state[key]))
        torch.testing.assert_close(image, same)


def test_a_fast_pathway_has_no_place_in_a_network_of_one() -> None:
    own = models.slow_small(3, width=4).state_dict().keys()
    key = "s2.pathway1_res0.branch2.a.weight"
    slow = "s2.pathway0_res0.branch2.a.weight"
    found = match_keys([key, slow, "s1_fuse.bn.weight", "s3.pathway0_res7.branch2.a.weight"], own).keys
    assert found.pop(slow) == "blocks.1.res_blocks.0.branch2.conv_a.weight"
    assert all(name == kept for name, kept in found.items()) and key in found


@pytest.mark.usefixtures("only_names")
@pytest.mark.parametrize("norm", ["bn", "norm"])
def test_non_local_blocks_are_found_by_the_block_they_follow(norm: str) -> None:
    """Wherever a network keeps them: pytorchvideo has the block, but no network with it."""
    stage: Any = hub.i3d_r50(pretrained=False).blocks[3]
    stage.nonlocal_blocks = nn.ModuleDict({"1": create_nonlocal(dim_in=512, dim_inner=256)})
    own = {f"blocks.3.{key}" for key in stage.state_dict()} | {"blocks.0.conv.weight", "blocks.1.res_blocks.0.x"}
    layout = BlockLayout.of(own)
    assert layout is not None
    theirs = [f"s3.pathway0_nonlocal1.{layer}.weight" for layer in ("conv_theta", "conv_phi", "conv_out", norm)]
    found = translate([*theirs, "s3.pathway0_nonlocal3.conv_g.bias"], PYSLOWFAST, layout, own=own)
    start = "blocks.3.nonlocal_blocks.1."
    ours = [start + layer for layer in ("conv_theta.weight", "conv_phi.weight", "conv_out.weight", "norm.weight")]
    assert list(found.values()) == [*ours, "s3.pathway0_nonlocal3.conv_g.bias"]


# -- PySlowFast's X3D -------------------------------------------------------------------------------------

# From X3DStem in stem_helper.py, X3DTransform in resnet_helper.py, SE in operators.py and X3DHead in head_helper.py.
# pytorchvideo's create_x3d_stem gives its Conv2plus1d the convolution in space as conv_t.
X3D = {
    "s1.pathway0_stem.conv_xy.weight": "blocks.0.conv.conv_t.weight",
    "s1.pathway0_stem.conv.weight": "blocks.0.conv.conv_xy.weight",
    "s1.pathway0_stem.bn.weight": "blocks.0.norm.weight",
    "s2.pathway0_res0.branch1.weight": "blocks.1.res_blocks.0.branch1_conv.weight",
    "s3.pathway0_res0.branch1_bn.running_var": "blocks.2.res_blocks.0.branch1_norm.running_var",
    "s2.pathway0_res0.branch2.a.weight": "blocks.1.res_blocks.0.branch2.conv_a.weight",
    "s2.pathway0_res1.branch2.b.weight": "blocks.1.res_blocks.1.branch2.conv_b.weight",
    "s2.pathway0_res1.branch2.a_bn.bias": "blocks.1.res_blocks.1.branch2.norm_a.bias",
    "s2.pathway0_res1.branch2.b_bn.running_mean": "blocks.1.res_blocks.1.branch2.norm_b.0.running_mean",
    "s4.pathway0_res2.branch2.se.fc1.weight": "blocks.3.res_blocks.2.branch2.norm_b.1.block.0.weight",
    "s4.pathway0_res2.branch2.se.fc2.bias": "blocks.3.res_blocks.2.branch2.norm_b.1.block.2.bias",
    "s5.pathway0_res6.branch2.c_bn.weight": "blocks.4.res_blocks.6.branch2.norm_c.weight",
    "head.conv_5.weight": "blocks.5.pool.pre_conv.weight",
    "head.conv_5_bn.running_var": "blocks.5.pool.pre_norm.running_var",
    "head.lin_5.weight": "blocks.5.pool.post_conv.weight",
    "head.projection.bias": "blocks.5.proj.bias",
}


@pytest.mark.usefixtures("only_names")
def test_pyslowfasts_x3d_one_by_one() -> None:
    own = hub.x3d_s(pretrained=False).state_dict().keys()
    assert match_keys(X3D, own).keys == X3D


class PySlowFastBlock(nn.Module):
    """A residual block of PySlowFast's X3D: ResBlock and X3DTransform, attribute by attribute."""

    def __init__(self, dims: tuple[int, int, int, int], stride: int, gate: bool) -> None:
        super().__init__()
        dim_in, inner, dim_out, squeezed = dims
        if dim_in != dim_out or stride != 1:
            self.branch1 = nn.Conv3d(dim_in, dim_out, 1, stride=(1, stride, stride), bias=False)
            self.branch1_bn = nn.BatchNorm3d(dim_out)
        self.branch2 = nn.Module()
        self.branch2.a, self.branch2.a_bn = nn.Conv3d(dim_in, inner, 1, bias=False), nn.BatchNorm3d(inner)
        b = nn.Conv3d(inner, inner, 3, stride=(1, stride, stride), padding=1, groups=inner, bias=False)
        self.branch2.b, self.branch2.b_bn = b, nn.BatchNorm3d(inner)
        if gate:
            self.branch2.se = nn.Module()
            self.branch2.se.fc1, self.branch2.se.fc2 = nn.Conv3d(inner, squeezed, 1), nn.Conv3d(squeezed, inner, 1)
        self.branch2.c, self.branch2.c_bn = nn.Conv3d(inner, dim_out, 1, bias=False), nn.BatchNorm3d(dim_out)

    def forward(self, x: Tensor) -> Tensor:
        parts: Any = self.branch2
        y = parts.b_bn(parts.b(parts.a_bn(parts.a(x)).relu()))
        if hasattr(parts, "se"):
            y = y * parts.se.fc2(parts.se.fc1(y.mean((2, 3, 4), keepdim=True)).relu()).sigmoid()
        y = parts.c_bn(parts.c(nn.functional.silu(y)))
        return ((self.branch1_bn(self.branch1(x)) if hasattr(self, "branch1") else x) + y).relu()


def random_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.2)
            module.running_mean.normal_(std=0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]


def test_a_shortcut_without_norm_takes_on_the_files() -> None:
    """One block of PySlowFast's against pytorchvideo's, with as many channels out as in."""
    torch.manual_seed(0)
    theirs = PySlowFastBlock((6, 12, 6, 8), 2, gate=False).eval()
    random_norms(theirs)
    dims: dict[str, Any] = {"dim_in": 6, "dim_inner": 12, "dim_out": 6, "conv_stride": (1, 2, 2)}
    ours = create_x3d_res_block(**dims, bottleneck=create_x3d_bottleneck_block, se_ratio=0.0).eval()
    state = {f"s2.pathway0_res0.{key}": value for key, value in theirs.state_dict().items()}
    own = {f"blocks.1.res_blocks.0.{key}" for key in ours.state_dict()} | {"blocks.0.conv.conv_t.weight"}
    matching = match_keys(state, own)
    made = {matching.keys[key]: value for key, value in without_shortcut_norms(state, matching).items()}
    ours.load_state_dict({key.removeprefix("blocks.1.res_blocks.0."): value for key, value in made.items()})
    x = torch.randn(2, 6, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


class PySlowFastX3D(nn.Module):
    """Its X3D-XS, -S and -M (WIDTH_FACTOR 2.0, DEPTH_FACTOR 2.2, BOTTLENECK_FACTOR 2.25, DIM_C1 12, DIM_C5 2048)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.s1 = nn.Module()
        self.s1.pathway0_stem = nn.Module()
        self.s1.pathway0_stem.conv_xy = nn.Conv3d(3, 24, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False)
        self.s1.pathway0_stem.conv = nn.Conv3d(24, 24, (5, 1, 1), padding=(2, 0, 0), groups=24, bias=False)
        self.s1.pathway0_stem.bn = nn.BatchNorm3d(24)
        dim_in = 24
        for number, (depth, dim, squeezed) in enumerate(((3, 24, 8), (5, 48, 8), (11, 96, 16), (7, 192, 32)), 2):
            stage = nn.Module()
            for n in range(depth):
                dims = (dim_in, int(2.25 * dim), dim, squeezed)
                stage.add_module(f"pathway0_res{n}", PySlowFastBlock(dims, 2 if n == 0 else 1, gate=n % 2 == 0))
                dim_in = dim
            self.add_module(f"s{number}", stage)
        self.head = nn.Module()
        self.head.conv_5, self.head.conv_5_bn = nn.Conv3d(192, 432, 1, bias=False), nn.BatchNorm3d(432)
        self.head.lin_5, self.head.projection = nn.Conv3d(432, 2048, 1, bias=False), nn.Linear(2048, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        parts: Any = self
        stem, head = parts.s1.pathway0_stem, parts.head
        x = stem.bn(stem.conv(stem.conv_xy(x))).relu()
        for stage in (parts.s2, parts.s3, parts.s4, parts.s5):
            for block in stage.children():
                x = block(x)
        x = head.conv_5_bn(head.conv_5(x)).relu().mean((2, 3, 4), keepdim=True)
        return head.projection(head.lin_5(x).relu().flatten(1))


@pytest.mark.slow
def test_a_whole_x3d_checkpoint_of_pyslowfast_gives_its_scores(tmp_path: Path) -> None:
    """Its res2 normalises a shortcut that pytorchvideo's does not."""
    torch.manual_seed(0)
    theirs = PySlowFastX3D(5).eval()
    random_norms(theirs)
    torch.save({"epoch": 300, "model_state": theirs.state_dict(), "cfg": "A: 1"}, tmp_path / "x3d_s.pyth")
    network = models.x3d_s(5, alpha=0.0).eval()
    report = load_weights(network, read_weights(tmp_path / "x3d_s.pyth"), head="strict")
    total = len(network.state_dict())
    assert str(report) == f"{total} of {total} weights loaded\n  {total} found under PySlowFast's names"
    clips = torch.randn(1, 3, 2, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(clips), theirs(clips), rtol=1e-4, atol=1e-4)
    octave = models.x3d_s(5, alpha=0.25)
    assert load_weights(octave, read_weights(tmp_path / "x3d_s.pyth"), head="strict").loaded == total


@pytest.mark.usefixtures("only_names")
@pytest.mark.parametrize("prefix", ["", "module.model."])
@pytest.mark.parametrize(
    "name", ["x3d_xs", *[pytest.param(n, marks=pytest.mark.slow) for n in ("csn_r101", "r2plus1d_r50", "slowfast_r50")]]
)
def test_pytorchvideos_files_load_whether_its_own_or_by_pyslowfasts_builders(name: str, prefix: str) -> None:
    """PTVX3D, PTVCSN and PTVR2plus1D of ptv_model_builder.py hold pytorchvideo's network as `model`."""
    theirs = {prefix + key: value for key, value in getattr(hub, name)(pretrained=False).state_dict().items()}
    network = getattr(models, name)()
    report = load_weights(network, weights_in({"model_state": theirs}, source="x"), head="strict")
    assert report.loaded == len(theirs) and report.owner is None
