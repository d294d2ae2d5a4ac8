"""Weights in all the forms that programs save them in, and what the user is told where they do not fit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import pytorchvideo.models.hub as hub
import torch
from torch import nn

import octvideo.models as models
from octvideo.errors import UserError
from octvideo.models.weights import OctaveSetting, load_weights, read_weights, weights_in
from octvideo.octave import octavize


def network(**options: Any) -> nn.Module:
    return models.i3d_small(**{"num_classes": 3, "width": 4, **options})


def octvideo_checkpoint(trained: nn.Module) -> dict[str, Any]:
    state = {f"network.{key}": value for key, value in trained.state_dict().items()}
    block = {"format": 1, "network": trained.meta["built_from"], "class_names": ["a", "b", "c"]}
    return {"state_dict": {**state, "evaluation.total": torch.ones(1)}, "octvideo": block, "epoch": 3}


def same(a: nn.Module, b: nn.Module, *, but: str = " ") -> bool:
    theirs = b.state_dict()
    return all(torch.equal(t, theirs[key]) for key, t in a.state_dict().items() if not key.startswith(but))


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


FORMS = {
    "bare": lambda state: state,
    "pytorchvideo": lambda state: {"model_state": state},
    "PySlowFast": lambda state: {"epoch": 1, "model_state": state, "optimizer_state": {}, "cfg": "A: 1"},
    "Lightning": lambda state: {"state_dict": {**prefixed("model.", state)}, "epoch": 1},
    "DistributedDataParallel": lambda state: prefixed("module.", state),
    "Lightning of a compiled network": lambda state: {"state_dict": prefixed("net._orig_mod.", state)},
    "torchvision": lambda state: {"model": prefixed("module.", state), "args": "x"},
}


@pytest.mark.parametrize(("form", "zipped"), [*((form, True) for form in FORMS), ("PySlowFast", False)])
def test_every_form_loads(form: str, zipped: bool, tmp_path: Path) -> None:
    trained, fresh = network(), network()
    path = tmp_path / "weights.pyth"
    torch.save(FORMS[form](trained.state_dict()), path, _use_new_zipfile_serialization=zipped)
    assert not same(fresh, trained)
    report = load_weights(fresh, read_weights(path), head="strict")
    assert same(fresh, trained)
    total = len(trained.state_dict())
    assert str(report) == f"{total} of {total} weights loaded" and report.warning is None


def test_an_octvideo_checkpoint_loads_and_says_what_it_was_trained_as(tmp_path: Path) -> None:
    trained, fresh = network(alpha=0.25), network(alpha=0.25)
    torch.save(octvideo_checkpoint(trained), tmp_path / "last.ckpt")
    weights = read_weights(tmp_path / "last.ckpt")
    assert weights.setting == OctaveSetting(0.25, "pool") and weights.source == str(tmp_path / "last.ckpt")
    assert load_weights(fresh, weights, head="strict").warning is None
    assert same(fresh, trained)


def test_the_published_i3d_fits_the_octave_network(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    published = hub.i3d_r50(pretrained=False)
    torch.save({"model_state": published.state_dict()}, tmp_path / "I3D_8x8_R50.pyth")
    octave = models.i3d_r50(alpha=0.25)
    with caplog.at_level(logging.WARNING):
        report = load_weights(octave, read_weights(tmp_path / "I3D_8x8_R50.pyth"), head="strict")
    assert report.loaded == report.total and same(octave, published)
    message = (
        "trained at alpha 0 with downsample stride and used at alpha 0.25 with downsample pool, so their "
        "accuracy is not kept until they are fine-tuned"
    )
    assert report.warning == message
    assert caplog.messages == [f"weights from {tmp_path / 'I3D_8x8_R50.pyth'}: {message}"]


@pytest.mark.parametrize(
    ("trained", "used", "kept"),
    [
        ({"alpha": 0.25}, {"alpha": 0.25}, True),
        ({"alpha": 0.25}, {"alpha": 0.5}, False),
        ({"alpha": 0.25}, {}, False),
        ({}, {"downsample": "pool"}, False),
        ({"alpha": 0.25}, {"alpha": 0.25, "downsample": "stride"}, False),
    ],
)
def test_another_alpha_or_downsampling_is_said_aloud(
    trained: dict[str, Any], used: dict[str, Any], kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    weights = weights_in(octvideo_checkpoint(network(**trained)), source="a.ckpt")
    report = load_weights(network(**used), weights, head="strict")
    assert (report.warning is None) == kept == (not caplog.messages)


def test_shares_of_single_stages_are_compared_too() -> None:
    shares = {"layer1": 0.5}
    assert str(OctaveSetting(shares)) == "alpha {'layer1': 0.5} with downsample stride"
    assert OctaveSetting(shares).is_close(OctaveSetting(dict(shares)))
    assert not OctaveSetting(shares).is_close(OctaveSetting(0.5))


def test_networks_that_are_not_ours_are_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Flatten())
    weights = weights_in(plain.state_dict(), source="x")
    assert load_weights(octavize(plain, 0.0), weights, head="strict").warning is None
    assert load_weights(plain, weights, head="strict").warning is None
    warning = load_weights(octavize(plain, 0.5), weights, head="strict").warning
    assert "used at alpha 0.5 with downsample stride" in warning
    state = prefixed("network.", plain.state_dict())
    unknown = weights_in({"state_dict": state, "octvideo": {"network": None}}, source="y")
    assert load_weights(octavize(plain, 0.5), unknown, head="strict").warning is None


def test_another_class_count_gets_a_new_head() -> None:
    trained, fresh = network(num_classes=400), network(num_classes=3)
    head = {key: value.clone() for key, value in fresh.state_dict().items() if ".proj." in key}
    report = load_weights(fresh, weights_in(trained.state_dict(), source="x"), head="swap")
    total = len(fresh.state_dict())
    assert len(head) == 2 and report.classes == (400, 3)
    assert str(report) == f"{total - 2} of {total} weights loaded, new head (400 -> 3 classes)"
    assert same(fresh, trained, but="blocks.6.proj.")
    assert all(torch.equal(fresh.state_dict()[key], value) for key, value in head.items())


def test_the_same_class_count_keeps_the_head() -> None:
    trained, fresh = network(), network()
    report = load_weights(fresh, weights_in(trained.state_dict(), source="x"), head="swap")
    assert report.classes is None and same(fresh, trained)


def test_strict_says_which_classes_to_build() -> None:
    weights = weights_in(network(num_classes=400).state_dict(), source="k400.pyth")
    fresh = network()
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    total = len(before)
    with pytest.raises(UserError) as caught:
        load_weights(fresh, weights, head="strict")
    assert str(caught.value) == (
        f"weights from k400.pyth do not fit: {total - 2} of the network's {total} weights match; 2 of another "
        "shape in the file: blocks.6.proj.weight (400, 128), here (3, 128), blocks.6.proj.bias (400,), here "
        "(3,). Expected all to match: build the network that these weights were trained in, with "
        "num_classes=400"
    )
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())


def test_missing_and_unexpected_keys_are_counted_and_named() -> None:
    state = network().state_dict()
    for key in ("blocks.0.conv.weight", "blocks.6.proj.bias"):
        del state[key]
    state.update({f"extra.{n}": torch.ones(1) for n in range(5)})
    total = len(network().state_dict())
    report = load_weights(network(), weights_in(state, source="x"), head="swap")
    assert str(report).splitlines() == [
        f"{total - 2} of {total} weights loaded",
        "  2 missing in the file, left as initialised: blocks.0.conv.weight, blocks.6.proj.bias",
        "  5 only in the file, not used: extra.0, extra.1, extra.2, ...",
    ]
    with pytest.raises(UserError, match=r"2 missing in the file: .*; 5 only in the file: extra\.0, .*\.\.\."):
        load_weights(network(), weights_in(state, source="x"), head="strict")


def test_another_architecture_is_refused_even_with_a_new_head() -> None:
    fresh = network()
    other = {f"layer{n}.weight": torch.ones(2) for n in range(9)}
    other["blocks.0.norm.weight"] = fresh.state_dict()["blocks.0.norm.weight"]
    with pytest.raises(UserError) as caught:
        load_weights(fresh, weights_in(other, source="vit.pth"), head="swap")
    text = str(caught.value)
    assert text.startswith("weights from vit.pth do not fit: 1 of the network's ")
    assert "9 only in the file: layer0.weight, layer1.weight, layer2.weight, ..." in text
    assert text.endswith("Expected at least half to match: build the network that these weights were trained in")


def test_the_counter_of_batches_may_be_missing() -> None:
    state = {key: t for key, t in network().state_dict().items() if "num_batches" not in key}
    report = load_weights(network(), weights_in(state, source="x"), head="strict")
    assert report.loaded == report.total == len(state)
