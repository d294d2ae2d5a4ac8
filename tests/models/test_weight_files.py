"""Files of weights in both formats: found by content, and refused in words."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import octvideo.models as models
from octvideo.errors import UserError
from octvideo.models.weight_files import PixelScale, read_file


def network() -> nn.Module:
    return models.i3d_small(num_classes=3, width=4)


def octvideo_checkpoint(trained: nn.Module) -> dict[str, object]:
    state = {f"network.{key}": value for key, value in trained.state_dict().items()}
    block = {"format": 1, "network": trained.meta["built_from"], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}
    return {"state_dict": state, "octvideo": block, "epoch": 3}


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"])
def test_safetensors_by_any_name(name: str, tmp_path: Path) -> None:
    state = network().state_dict()
    save_file(state, tmp_path / name, metadata={"format": "pt"})
    weights = read_file(tmp_path / name)
    assert weights.tensors.keys() == state.keys() and weights.source == str(tmp_path / name)
    assert all(torch.equal(weights.tensors[key], value) for key, value in state.items())


def test_a_checkpoint_of_ours_says_how_its_pixels_were_normalised(tmp_path: Path) -> None:
    torch.save(octvideo_checkpoint(network()), tmp_path / "last.ckpt")
    assert read_file(tmp_path / "last.ckpt").pixels == PixelScale((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    expected = (
        "a checkpoint of octvideo, pytorchvideo, PySlowFast or Lightning, or a state_dict from torch.save or "
        "safetensors"
    )
    text, folder, empty = tmp_path / "notes.pth", tmp_path / "run", tmp_path / "empty.pth"
    text.write_text("not weights")
    folder.mkdir()
    torch.save({"epoch": 3, "cfg": "A: 1"}, empty)
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.safetensors").write_text("not weights")
    torch.save(octvideo_checkpoint(network()) | {"state_dict": {"x": torch.ones(1)}}, tmp_path / "x.ckpt")
    for path, message in (
        (tmp_path / "none.pth", "no weights at {}: got no such file"),
        (folder, "no weights at {}: got a folder"),
        (text, "{} can't be read as weights: it is not a file of torch.save"),
        (tmp_path / "text.safetensors", "{} can't be read as weights: it is not a whole file of safetensors (Error"),
        (empty, "{} holds no weights: got keys epoch, cfg"),
        (tmp_path / "list.pth", "{} holds no weights: got a list"),
        (tmp_path / "x.ckpt", "{} holds no weights: got keys state_dict, octvideo, epoch"),
    ):
        with pytest.raises(UserError) as caught:
            read_file(path)
        said = str(caught.value)
        assert said.startswith(message.format(path)) and said.endswith(f"expected {expected}"), said
        assert "\n" not in said


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_a_damaged_file_is_named(save: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    save(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"half\.pth can't be read as weights"):
        read_file(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_network_is_refused_in_words(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "whole.pth"
    torch.save(nn.Linear(2, 2), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError) as caught:
        read_file(path)
    assert str(caught.value) == (
        f"{path} is refused: besides tensors it holds Python objects (torch.nn.modules.linear.Linear), and "
        "reading those can run code from the file. Where it was made, save the weights alone: "
        "torch.save(model.state_dict(), PATH)"
    )


def test_caffe2s_files_are_called_by_their_name(tmp_path: Path) -> None:
    with (tmp_path / "I3D_8x8_R50.pkl").open("wb") as file:
        pickle.dump({"blobs": {"conv1_w": torch.ones(2).numpy()}}, file, protocol=2)
    with pytest.raises(
        UserError, match=r"I3D_8x8_R50\.pkl can't be read as weights: it is a Caffe2 file, which PySlow"
    ):
        read_file(tmp_path / "I3D_8x8_R50.pkl")
