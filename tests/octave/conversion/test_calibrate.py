"""Trained networks made octave with clips: channels chosen, moved and fitted."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from octvideo.octave import Calibration, count_cost, octavize
from octvideo.octave.conversion.refit import fit_norm

CLASSES = 6


class Block(nn.Module):
    """A residual block with a gate, as SE-ResNets have them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.a, self.a_norm = nn.Conv3d(width, inner, 1, bias=False), nn.BatchNorm3d(inner)
        self.b = nn.Conv3d(inner, inner, (1, 3, 3), padding=(0, 1, 1), groups=inner, bias=False)
        self.b_norm, self.relu = nn.BatchNorm3d(inner), nn.ReLU(inplace=True)
        self.pool, self.gate = nn.AdaptiveAvgPool3d(1), nn.Conv3d(inner, inner, 1)
        self.c, self.c_norm = nn.Conv3d(inner, width, 1, bias=False), nn.BatchNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.a_norm(self.a(x)))
        y = self.relu(self.b_norm(self.b(y)))
        y = y * torch.sigmoid(self.gate(self.pool(y)))
        return self.relu(x + self.c_norm(self.c(y)))


class Net(nn.Module):
    """A stem, two blocks, a strided convolution with a bias and without a norm, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(8)
        self.first = nn.Conv3d(8, 16, 1)
        self.blocks = nn.Sequential(Block(16, 24), Block(16, 24))
        self.last = nn.Conv3d(16, 16, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        self.end = nn.Conv3d(16, 12, 1)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(torch.relu(self.stem_norm(self.stem(x))))
        x = torch.relu(self.end(torch.relu(self.last(self.blocks(x)))))
        return self.head(x.mean((2, 3, 4)))


@pytest.fixture(scope="module")
def clips() -> Tensor:
    """Half of what they hold is smooth."""
    torch.manual_seed(1)
    smooth = nn.functional.interpolate(torch.randn(24, 3, 2, 4, 4), (2, 12, 12), mode="trilinear")
    return smooth + 0.3 * torch.randn(24, 3, 2, 12, 12)


@pytest.fixture(scope="module")
def few(clips: Tensor) -> Tensor:
    """For what holds on any clips: each costs a pass forward and back."""
    return clips[:6]


@pytest.fixture(scope="module")
def net(clips: Tensor) -> Net:
    """With the statistics of these clips, and no channel like another."""
    torch.manual_seed(0)
    network = Net()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    with torch.no_grad():
        network(clips)
    return network.eval()


def converted(net: nn.Module, clips: Tensor | Sequence[Tensor], alpha: Any = 0.5, **options: Any) -> Any:
    return octavize(net, alpha, octave_downsample="keep", calibration=Calibration(clips, **options))


def error(network: nn.Module, net: nn.Module, clips: Tensor) -> float:
    with torch.no_grad():
        wanted = net(clips)
        return float((network(clips) - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


@pytest.mark.parametrize("choose", ["output", "detail", "random", "worst", "first"])
def test_channels_that_change_places_keep_the_function(net: Net, few: Tensor, choose: Any) -> None:
    octave = converted(net, few, choose=choose, refit="none")
    report = octave.octave_report.calibration
    # In each block the expanded width, which b, depthwise, reads and writes; its ends and the trunk stay ordinary.
    assert set(report.orders) == set(report.shares) == {"blocks.0.a", "blocks.1.a", "last"}
    assert any(order != tuple(range(len(order))) for order in report.orders.values())
    ordinary = octavize(net, 0.0)
    ordinary.load_state_dict(octave.state_dict())
    torch.testing.assert_close(ordinary(few), net(few), rtol=1e-4, atol=1e-5)
    assert octave.state_dict().keys() == net.state_dict().keys()


def test_the_network_is_built_again_from_its_shares(net: Net, few: Tensor) -> None:
    octave = converted(net, few, spread="budget")
    again = octavize(Net(), octave.octave_report.alpha, octave_downsample="keep").eval()
    again.load_state_dict(octave.state_dict())
    assert torch.equal(again(few), octave(few))
    assert again.octave_report.layers == octave.octave_report.layers


def test_each_step_comes_nearer(net: Net, clips: Tensor) -> None:
    before = copy.deepcopy(net.state_dict())
    test = clips[16:]
    errors = {
        name: error(converted(net, clips[:16], 0.5, **options), net, test)
        for name, options in {
            "worst": {"choose": "worst", "refit": "none"},
            "chosen": {"refit": "none"},
            "norms": {"refit": "norms"},
            "weights": {"refit": "weights"},
        }.items()
    }
    assert errors["worst"] > errors["chosen"] > errors["norms"] > errors["weights"]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())  # it is not changed


def test_losses_are_those_of_pooling(net: Net, clips: Tensor) -> None:
    """Reference: one class by hand."""
    measured = converted(net, clips, refit="none").octave_report.calibration.losses["last"]
    with torch.no_grad():
        x = net.last(net.blocks(net.first(torch.relu(net.stem_norm(net.stem(clips))))))
    detail = torch.zeros(16, dtype=torch.double)
    for value in (x, torch.relu(x)):  # the values of the class
        pooled = nn.functional.avg_pool3d(value, (1, 2, 2)).repeat_interleave(2, 3).repeat_interleave(2, 4)
        detail += (value - pooled).square().mean((2, 3, 4)).sum(0)
    torch.testing.assert_close(measured.detail, detail, rtol=1e-5, atol=1e-6)  # sums in float32
    assert (measured.detail < measured.energy).all()


def test_output_loss_ranks_channels_by_what_they_do_to_the_output(net: Net, clips: Tensor) -> None:
    """Reference: networks of which one channel is really low."""
    loss = converted(net, clips, refit="none").octave_report.calibration.losses["last"].output
    alone = []
    for channel in range(16):
        order = [c for c in range(16) if c != channel] + [channel]
        moved = copy.deepcopy(net)
        moved.last.weight.data, moved.last.bias.data = net.last.weight[order], net.last.bias[order]
        moved.end.weight.data = net.end.weight[:, order]
        alone.append(error(octavize(moved, {"last": 1 / 16}, octave_downsample="keep"), net, clips))
    ranks = [torch.tensor(values).argsort().argsort().double() for values in (loss.tolist(), alone)]
    assert torch.corrcoef(torch.stack(ranks))[0, 1] > 0.7


def test_a_budget_is_kept(net: Net, few: Tensor) -> None:
    shape = (1, 3, 2, 12, 12)
    even = converted(net, few, refit="none")
    spread = converted(net, few, refit="none", spread="budget")
    assert count_cost(spread, shape).multiply_adds <= count_cost(even, shape).multiply_adds
    shares = spread.octave_report.calibration.shares
    assert len(set(shares.values())) > 1 and max(shares.values()) <= 0.75


def test_an_interrupted_conversion_goes_on_and_gives_the_same(net: Net, few: Tensor) -> None:
    whole = converted(net, few)

    class StopError(Exception):
        pass

    for stop_at in (3, len(few) + 4):
        states: list[dict[str, Any]] = []

        def keep(state: dict[str, Any], states: list[dict[str, Any]] = states, stop_at: int = stop_at) -> None:
            states.append(copy.deepcopy(state))
            if len(states) == stop_at:
                raise StopError

        with pytest.raises(StopError):
            converted(net, few, keep=keep)
        steps: list[int] = []

        def watch(step: str, parts: Sequence[Any], steps: list[int] = steps) -> Sequence[Any]:
            steps.append(len(parts))
            return parts

        again = converted(net, few, begun=states[-1], watch=watch)
        assert steps[0] == max(0, len(few) - stop_at)
        assert all(torch.equal(value, whole.state_dict()[key]) for key, value in again.state_dict().items())


def test_little_memory_fits_on_fewer_clips(net: Net, clips: Tensor) -> None:
    few = converted(net, clips, memory_bytes=400_000).octave_report.calibration
    assert 1 <= few.num_fitted_on < len(clips) and few.fitted
    assert converted(net, clips, memory_bytes=1).octave_report.calibration.num_fitted_on == 1


def test_what_cannot_change_places_is_left(clips: Tensor) -> None:
    """Groups tie channels to each other: such layers keep the last channels of each group low."""
    torch.manual_seed(0)
    grouped = nn.Sequential(
        nn.Conv3d(3, 16, 1), nn.ReLU(), nn.Conv3d(16, 16, 1), nn.ReLU(), nn.Conv3d(16, 16, 1, groups=4), nn.ReLU(),
        nn.Conv3d(16, 16, 1), nn.ReLU(), nn.Conv3d(16, 4, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
    ).eval()  # fmt: skip
    report = converted(grouped, clips).octave_report
    assert set(report.calibration.shares) == {"6"} and set(report.layers) == {"2", "4", "6", "8"}


def test_a_module_with_unknown_weights_keeps_its_channels(clips: Tensor) -> None:
    """PReLU has a weight a channel, which nothing here moves: found by computing, not by name."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv3d(3, 8, 1), nn.Conv3d(8, 8, 1), nn.Conv3d(8, 8, 1)
            self.d, self.slope = nn.Conv3d(8, 8, 1), nn.Parameter(torch.randn(8, 1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.c(torch.relu(self.b(torch.relu(self.a(x)))))
            return self.d(torch.relu(y * self.slope)).mean((2, 3, 4))

    torch.manual_seed(0)
    network = Scaled().eval()
    octave = converted(network, clips, choose="worst", refit="none")
    ordinary = octavize(network, 0.0)
    ordinary.load_state_dict(octave.state_dict())
    torch.testing.assert_close(ordinary(clips), network(clips), rtol=1e-4, atol=1e-5)
    assert "b" in octave.octave_report.calibration.orders


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"choose": "best"}, "choose is 'best', expected 'output', 'detail'"),
        ({"refit": "all"}, "refit is 'all', expected 'none', 'norms', 'weights'"),
        ({"clips": []}, "got no clip, expected some 200"),
        ({"clips": iter([])}, "got clips of type list_iterator, expected a list of inputs"),
    ],
)
def test_mistakes_are_told(net: Net, clips: Tensor, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Calibration(**{"clips": clips, **options})


def test_clips_may_be_any_sequence(net: Net, few: Tensor) -> None:
    a = converted(net, few, refit="norms")
    b = octavize(net, 0.5, octave_downsample="keep", calibration=[few[n : n + 1] for n in range(len(few))])
    c = octavize(net, 0.5, octave_downsample="keep", calibration=few)
    assert all(torch.equal(x, y) for x, y in zip(b.state_dict().values(), c.state_dict().values(), strict=True))
    assert a.octave_report.calibration.orders == b.octave_report.calibration.orders
    assert not a.training and not b.training


def test_channels_that_are_shuffled_keep_their_places() -> None:
    torch.manual_seed(0)
    network = torchvision.models.shufflenet_v2_x0_5().eval()
    images = torch.randn(2, 3, 32, 32)
    octave = octavize(network, 0.5, octave_downsample="keep", calibration=Calibration(images, refit="none"))
    ordinary = octavize(network, 0.0)
    ordinary.load_state_dict(octave.state_dict())
    torch.testing.assert_close(ordinary(images), network(images), rtol=1e-3, atol=1e-4)
    report = octave.octave_report.calibration
    assert 0 < len(report.orders) < len(report.shares)


def test_a_network_without_octave_layers_is_given_back(clips: Tensor) -> None:
    network = nn.Sequential(nn.Conv3d(3, 4, 1), nn.GroupNorm(2, 4), nn.Conv3d(4, 4, 1)).eval()
    octave = converted(network, clips)
    assert torch.equal(octave(clips), network(clips)) and not octave.octave_report.layers


def test_training_mode_is_kept_and_changes_nothing(net: Net, few: Tensor) -> None:
    """Else norms would take statistics from single clips, and dropout would hide the function."""
    training = nn.Sequential(copy.deepcopy(net).train(), nn.Dropout(0.5))
    training[0].stem_norm.eval()
    octave, expected = converted(training, few), converted(net, few)
    for ours, other in zip(octave.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(ours, other)
    assert octave.training and octave.get_submodule("0.blocks").training and training.training
    assert not octave.get_submodule("0.stem_norm").training


def test_clips_that_the_network_changes_in_place_are_kept(net: Net, few: Tensor) -> None:
    given = few.clone()
    octave = converted(nn.Sequential(nn.ReLU(inplace=True), copy.deepcopy(net)).eval(), given)
    assert torch.equal(given, few)
    expected = converted(net, few.relu())
    assert all(torch.equal(a, b) for a, b in zip(octave.state_dict().values(), expected.state_dict().values()))  # noqa: B905


@pytest.mark.parametrize("form", ["dict", "vector"])
def test_outputs_may_have_other_forms(net: Net, few: Tensor, form: str) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = copy.deepcopy(net)

        def forward(self, x: Tensor) -> Any:
            return {"scores": self.net(x)} if form == "dict" else self.net(x)[:, 0]

    report = converted(Other().eval(), few, refit="none").octave_report.calibration
    assert set(report.orders) == {"net.blocks.0.a", "net.blocks.1.a", "net.last"}
    if form == "dict":
        expected = converted(net, few, refit="none").octave_report.calibration
        assert list(report.orders.values()) == list(expected.orders.values())


def test_clips_that_cannot_be_used_are_told(net: Net, clips: Tensor) -> None:
    broken = clips.clone()
    broken[2, 0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="clip 2 holds NaN or infinity"):
        converted(net, broken)
    broken[2] = 1e38  # its sums are infinite
    with pytest.raises(ValueError, match=r"output on clip 2 is not finite; the first value .* is that of blocks"):
        converted(net, broken)
    with_inf = copy.deepcopy(net)
    with_inf.blocks[1].c_norm.running_var[3] = torch.inf  # type: ignore[index, union-attr]
    with pytest.raises(ValueError, match=r"blocks\.1\.c_norm\.running_var of the network holds NaN or infinity"):
        converted(with_inf, clips)
    with pytest.raises(ValueError, match=r"a clip holds torch\.int64, expected what the network takes"):
        converted(net, [(clips[:1], torch.tensor([1]))])


@pytest.mark.parametrize("alpha", [0.5, 0.9, 1.0])
def test_a_budget_is_kept_at_large_shares(net: Net, clips: Tensor, alpha: float) -> None:
    shape = (1, 3, 2, 12, 12)
    even, spread = (
        count_cost(converted(net, clips[:4], alpha, refit="none", spread=spread), shape).multiply_adds
        for spread in ("even", "budget")
    )
    assert spread <= even


def test_fitting_comes_nearer_where_all_channels_are_low(net: Net, clips: Tensor) -> None:
    """Activations change the mean that norms have set, and scores are off by as much on every clip."""
    options: dict[str, Any] = {"octave_downsample": "keep", "inverted_residuals": "all"}
    before, norms, weights = (
        error(octavize(net, 1.0, calibration=Calibration(clips[:16], refit=refit), **options), net, clips[16:])
        for refit in ("none", "norms", "weights")
    )
    assert weights < norms < before


def test_a_classifiers_bias_takes_what_scores_lack(net: Net, clips: Tensor) -> None:
    octave = converted(net, clips, refit="norms")
    assert "head" in octave.octave_report.calibration.fitted
    with torch.no_grad():
        lacking = net(clips) - octave(clips)
    assert lacking.mean(0).abs().max() < 0.2 * lacking.std(0).max()  # all but chance
    with_softmax = converted(nn.Sequential(net, nn.Softmax(1)), clips, refit="norms")
    assert torch.equal(with_softmax.get_parameter("0.head.bias"), net.head.bias)
    assert "head" not in converted(net, clips[:1], refit="norms").octave_report.calibration.fitted


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(net: Net, clips: Tensor, mode: Any) -> None:
    with mode():
        octave = converted(copy.deepcopy(net), clips[:4].clone())
    expected = converted(net, clips[:4])
    assert all(torch.equal(x, y) for x, y in zip(octave.state_dict().values(), expected.state_dict().values()))  # noqa: B905
    octave(clips[:1]).sum().backward()  # it can be trained on
    assert octave.get_parameter("head.weight").grad is not None


def test_clips_may_have_another_type_than_the_network(net: Net, clips: Tensor) -> None:
    octave, expected = converted(net, clips[:4].double()), converted(net, clips[:4])
    assert torch.equal(octave(clips), expected(clips))
    double = converted(copy.deepcopy(net).double(), clips[:4])
    assert double.get_parameter("head.weight").dtype == torch.float64
    torch.testing.assert_close(double(clips.double()).float(), expected(clips), rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_clips_may_lie_on_another_device_than_the_network(net: Net, clips: Tensor) -> None:
    octave = converted(copy.deepcopy(net).cuda(), clips)
    assert octave.get_parameter("head.weight").is_cuda
    assert error(octave.cpu(), net, clips) < 1.2 * error(converted(net, clips), net, clips)


def test_clips_need_no_slices(net: Net, few: Tensor) -> None:
    class Set:
        def __len__(self) -> int:
            return len(few)

        def __getitem__(self, index: int) -> Tensor:
            return few[index : index + 1]

    octave, expected = converted(net, Set(), refit="norms"), converted(net, few, refit="norms")  # type: ignore[arg-type]
    assert torch.equal(octave(few), expected(few))


def test_what_is_kept_of_one_clip_does_not_change_with_the_next(net: Net, few: Tensor) -> None:
    """Ctrl-C amid a clip would count part of it twice."""
    states: list[dict[str, Any]] = []
    converted(net, few, refit="none", keep=lambda state: states.append(dict(state)))
    detail = [state["spectrum"]["losses"]["last"]["detail"] for state in states]
    assert not torch.equal(detail[0], detail[1])
    begun = copy.deepcopy(states[3])
    converted(net, few, refit="none", begun=begun)
    assert torch.equal(begun["spectrum"]["losses"]["last"]["detail"], detail[3])


def test_what_was_begun_of_other_channels_is_not_taken(net: Net, few: Tensor) -> None:
    states: list[dict[str, Any]] = []
    converted(net, few, 0.25, choose="worst", keep=lambda state: states.append(copy.deepcopy(state)))
    assert states[-1]["fitted"]
    octave, expected = converted(net, few, begun=states[-1]), converted(net, few)
    assert torch.equal(octave(few), expected(few))
    again, expected = (converted(net, few, {"": 0.5}, begun=begun, refit="none") for begun in (states[-1], None))
    assert torch.equal(again(few), expected(few))  # the stem has low channels, too, of which nothing was measured


def test_reported_shares_are_those_that_are_stored(net: Net, few: Tensor) -> None:
    options = {"octave_downsample": "stride", "channel_multiple": 5}
    calibration = Calibration(few, spread="budget", refit="none")
    report = octavize(net, 0.5, calibration=calibration, **options).octave_report  # type: ignore[arg-type]
    written = {path: out for path, (_, out) in report.layers.items()}
    assert all(written[path] == share for path, share in report.calibration.shares.items())
    assert converted(net, few, choose="last", refit="none").octave_report.calibration.orders == {}


def test_few_elements_fit_no_norm() -> None:
    """18 elements a clip."""
    ordinary = nn.BatchNorm3d(4).eval()
    few, many = ([torch.randn(1, 4, 2, 3, 3) for _ in range(count)] for count in (3, 4))
    for maps, same in ((few, True), (many, False)):
        fitted = fit_norm(ordinary, maps, [2 * x for x in maps], None)
        assert torch.equal(fitted["running_var"], ordinary.running_var) == same  # type: ignore[arg-type]
