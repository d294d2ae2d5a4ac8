"""Shared networks: bit for bit what was written, and nothing but a network of ours out of files of anybody."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from octvideo import models
from octvideo.errors import UserError
from octvideo.models.checkpoint import read_checkpoint
from octvideo.models.pretrained import partitions_of, pretrained_network, write_pretrained
from octvideo.models.weights import load_weights, read_weights

CLIPS = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))


def block_of(network: nn.Module, names: list[str]) -> dict[str, Any]:
    return {
        "format": 1,
        "version": "0.1.0",
        "network": network.meta["built_from"],  # type: ignore[index]
        "class_names": names,
        "views": None,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.1, 0.3],
    }


def tiny(**options: Any) -> nn.Module:
    """With weights and statistics that are nobody's default."""
    network = models.i3d_small(num_classes=3, width=8, zero_init_last_norm=False, **options)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.add_(0.1 * torch.rand(value.shape))
    return network.eval()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    torch.manual_seed(0)
    network = tiny(alpha=0.25)
    write_pretrained(network, block_of(network, ["wave", "sit", "打开"]), folder)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / "config.json").read_text())
    change(content["octvideo"])
    (folder / "config.json").write_text(json.dumps(content))


SHARES = {"blocks.1": 0.5, "blocks.3.res_blocks.0": 0.125}


@pytest.mark.parametrize(
    "build",
    [
        lambda: tiny(),
        lambda: tiny(alpha=0.5, octave={"factor": [2, 2, 2], "channel_multiple": 4}),
        lambda: tiny(alpha=SHARES),
        lambda: models.frame_network("torchvision:shufflenet_v2_x0_5", 3, alpha=0.25, shift=0.0).eval(),
    ],
    ids=["ordinary", "time octave", "shares of layers", "frames"],
)
def test_scores_are_the_same_bits(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    network = build()
    write_pretrained(network, block_of(network, ["a", "b", "c"]), tmp_path)
    again, block = pretrained_network(tmp_path)
    assert not again.training and block["class_names"] == ["a", "b", "c"] and block["std"] == [0.2, 0.1, 0.3]
    assert again.meta["built_from"] == network.meta["built_from"]  # type: ignore[index]
    with torch.inference_mode():
        assert torch.equal(again(CLIPS), network(CLIPS))
    assert partitions_of(again) == block["partitions"] == partitions_of(network)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny()
    write_pretrained(network, block_of(network, ["a", "b", "c"]), tmp_path)
    monkeypatch.setattr("octvideo.files.part_of", lambda path: full)
    (full := tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{tmp_path / 'model.safetensors'}'")):
        write_pretrained(network, block_of(network, ["a", "b", "c"]), tmp_path)
    assert not (tmp_path / "config.json").exists()  # no folder is whole whose weights were to be others


def test_files_are_safetensors_and_json_that_say_what_is_low(written: Path) -> None:
    assert {file.name for file in written.iterdir()} == {"config.json", "model.safetensors"}
    content = json.loads((written / "config.json").read_text(encoding="ascii"))
    assert content["library_name"] == "octvideo" and content["octvideo"]["class_names"][2] == "打开"
    assert content["octvideo"]["partitions"]["blocks.1.res_blocks.0.branch1_conv"] == {"in": "", "out": "24:32"}
    assert load_file(written / "model.safetensors").keys() == tiny().state_dict().keys()
    assert (written / "model.safetensors").stat().st_mode == (written / "config.json").stat().st_mode


def test_weights_start_another_network_with_what_they_were_trained_as(
    written: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = read_weights(written)
    assert (
        weights.setting is not None and weights.setting.alpha == 0.25 and weights.class_names == ["wave", "sit", "打开"]
    )
    assert weights.pixels is not None and weights.pixels.mean == (0.4, 0.5, 0.6)
    load_weights(tiny(alpha=0.5), weights, head="swap", class_names=["a", "b"])
    assert "trained at alpha 0.25" in caplog.text
    with pytest.raises(UserError, match=r"is a network to share, no checkpoint of a run: start from it with --init"):
        read_checkpoint(written)


# -- files of anybody ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["os.system", "octvideo.models.video.i3d_r50", "octvideo.models.warnings", "octvideo.models.__import__", "i3d_r50",
     "octvideo.cli.main", "builtins.exec"],
)  # fmt: skip
def test_no_other_code_is_named(path: str, folder: Path) -> None:
    change(folder, lambda block: block["network"].update(class_path=path))
    with pytest.raises(UserError, match=r"names the builder .*, expected one of octvideo.models"):
        pretrained_network(folder)


def test_a_pickle_under_the_name_of_weights_is_not_opened(folder: Path, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "was here",))

    for content in (pickle.dumps(Harmful()), b"", (folder / "model.safetensors").read_bytes()[:-100]):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=r"model.safetensors can't be read"):
            pretrained_network(folder)
    torch.save({"state_dict": {"a": Harmful()}}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model.safetensors can't be read"):
        pretrained_network(folder)
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"width": 16},
            r"weights in model.safetensors do not fit octvideo.models.i3d_small of config.json: got blocks",
        ),
        ({"width": 2000}, r"do not fit"),  # 60 GB of weights: no memory is taken for them
        ({"num_classes": 4}, r"got blocks.6.proj.bias \(3,\), expected \(4,\)"),
        ({"num_classes": "3"}, r"octvideo.models.i3d_small takes no such arguments|expected"),
        ({"alpha": 7}, r"alpha: got 7, expected the share"),
        ({"alpha": None}, r"takes no such arguments"),
        ({"downsample": "wide"}, r"downsample|takes no such arguments"),
        ({"eval": "1"}, r"takes no such arguments"),
        ({"octave": {"leaf_modules": 3}}, r"takes no such arguments"),
    ],
)
def test_arguments_that_do_not_fit(changed: dict[str, Any], said: str, folder: Path) -> None:
    change(folder, lambda block: block["network"]["init_args"].update(changed))
    with pytest.raises(UserError, match=said):
        pretrained_network(folder)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format": 2}, r"has format 2, this octvideo reads 1: upgrade octvideo"),
        ({"class_names": ["a", "b"]}, r"got 2 class names for a network of 3 classes"),
        ({"class_names": [1, 2, 3]}, r"config.json is damaged: got '\[1, 2, 3\]' for class_names"),
        ({"mean": [0.5]}, r"damaged: got '\[0.5\]' for mean"),
        ({"network": None}, r"damaged: got 'None' for network"),
        ({"views": "many"}, r"damaged: got 'many' for views"),
        ({"partitions": {}}, r"octvideo 0.1.0, which wrote it, stores other channels at half resolution in \d+ layers"),
    ],
)
def test_configs_that_are_damaged(changed: dict[str, Any], said: str, folder: Path) -> None:
    change(folder, lambda block: block.update(changed))
    with pytest.raises(UserError, match=said):
        pretrained_network(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"octvideo": 1}', "[" * 100_000, "\xff", '{"model_type": "bert"}'])
def test_other_configs(text: str, folder: Path) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"can't be read|is no network of octvideo"):
        pretrained_network(folder)


def test_what_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"revision v1 with .*: a folder has none"):
        pretrained_network(folder, revision="v1")
    state = load_file(folder / "model.safetensors")
    del state["blocks.6.proj.bias"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"got blocks.6.proj.bias none, expected \(3,\)"):
        pretrained_network(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model.safetensors: expected a folder that octvideo card RUN --hub"):
        pretrained_network(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config.json"):
        pretrained_network(folder)
    with pytest.raises(UserError, match=r"no folder .*/gone: give one that octvideo card RUN --hub wrote"):
        pretrained_network(folder / "gone")


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["blocks.6.proj.bias"][1] = float("nan")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"are not finite, the first is blocks.6.proj.bias"):
        pretrained_network(folder)
