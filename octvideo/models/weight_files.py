"""Weights out of files: the state_dict is found in whatever saved it, and no code from the file ever runs."""

from __future__ import annotations

import json
import math
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from octvideo.errors import UserError
from octvideo.files import one_line

EXPECTED = (
    "a checkpoint of octvideo, pytorchvideo, PySlowFast or Lightning, or a state_dict from torch.save or safetensors"
)
# Where programs put the state_dict: pytorchvideo and PySlowFast, Lightning and timm, torchvision's references.
_PLACES = ("model_state", "state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


@dataclass(frozen=True)
class OctaveSetting:
    """What the accuracy of weights depends on, though their keys and shapes do not.

    Args:
        alpha: the low share, or shares of module path prefixes.
        downsample: "stride" or "pool".
        octave: other options of octave layers; see octvideo.models.builders.
    """

    alpha: float | Mapping[str, float] = 0.0
    downsample: str = "stride"
    octave: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        alpha = self.alpha if isinstance(self.alpha, Mapping) else f"{self.alpha:g}"
        others = "".join(f", {name} {value}" for name, value in self.octave.items())
        return f"alpha {alpha} with downsample {self.downsample}{others}"

    def is_close(self, other: OctaveSetting) -> bool:
        a, b = self.alpha, other.alpha
        same = a == b if isinstance(a, Mapping) or isinstance(b, Mapping) else math.isclose(a, b)
        return same and self.downsample == other.downsample and self.octave == other.octave

    @classmethod
    def built_from(cls, built_from: Mapping[str, Any]) -> OctaveSetting:
        """Of a network that a builder of octvideo.models has made, from its record of that."""
        init_args = built_from["init_args"]
        alpha = init_args.get("alpha", 0.0)
        alpha = dict(alpha) if isinstance(alpha, Mapping) else float(alpha)
        return cls(alpha, init_args.get("downsample") or "stride", init_args.get("octave") or {})


@dataclass(frozen=True)
class PixelScale:
    """What a network's input is normalised with.

    Args:
        mean: per channel, of pixels scaled to [0, 1].
        std: per channel, of the same pixels.
        assumed: whether this is the custom of the field rather than said by the file.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    assumed: bool = False

    def __str__(self) -> str:
        return f"mean {list(self.mean)} and std {list(self.std)}"

    def is_close(self, other: PixelScale) -> bool:
        pairs = zip(self.mean + self.std, other.mean + other.std, strict=True)
        return all(math.isclose(a, b, abs_tol=1e-4) for a, b in pairs)


@dataclass(frozen=True)
class Weights:
    """The tensors of a network, and where they come from.

    Args:
        tensors: state_dict key to tensor.
        source: for messages: a path, a URL, timm:NAME.
        setting: what they were trained as; None where the file cannot say.
        pixels: what the network's input was normalised with, where that is known.
        class_names: K names of the head's rows, where the file has them.
    """

    tensors: Mapping[str, Tensor]
    source: str
    setting: OctaveSetting | None = OctaveSetting()
    pixels: PixelScale | None = None
    class_names: Sequence[str] | None = None


def read_file(path: str | Path, *, source: str | None = None) -> Weights:
    """The weights in a file; its tensors are mapped, not read, where the format allows that.

    Args:
        path: of a checkpoint of octvideo, of pytorchvideo or PySlowFast ("model_state"), of another Lightning
            module ("state_dict"), of a state_dict by itself (torchvision; timm's pytorch_model.bin), or of
            safetensors.
        source: for messages; None is the path.

    Raises:
        UserError: no such file, in neither format, damaged, more than tensors in it, or none.
    """
    source = source or str(path)
    if not Path(path).is_file():
        got = "a folder" if Path(path).is_dir() else "no such file"
        raise UserError(f"no weights at {source}: got {got}, expected {EXPECTED}")
    if Path(path).suffix == ".safetensors" or _is_safetensors(path):
        return weights_in(_read_safetensors(path, source), source=source)
    try:
        # Files from before torch 1.6 are no zip archives and cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch has no common type for "not a checkpoint"
        raise UserError(_why_unreadable(path, source, error)) from error
    return weights_in(content, source=source)


def _start_of(path: str | Path, count: int) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(count)


def _is_safetensors(path: str | Path) -> bool:
    """The format by its start, for files of another name: the length of a JSON header, and its brace."""
    start = _start_of(path, 9)
    # https://github.com/huggingface/safetensors#format: 8 bytes, little-endian, at most 100 MB.
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= 100_000_000


def _read_safetensors(path: str | Path, source: str) -> dict[str, Tensor]:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        reason = f"it is not a whole file of safetensors ({one_line(error)})"
        raise UserError(f"{source} can't be read as weights: {reason}; expected {EXPECTED}") from error


def _why_unreadable(path: str | Path, source: str, error: Exception) -> str:
    refused = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
    if _is_caffe2(path):
        reason = (
            "it is a Caffe2 file, which PySlowFast can load (TRAIN.CHECKPOINT_TYPE caffe2) and save as .pyth; "
            "pytorchvideo's zoo has most of the same networks"
        )
    elif isinstance(error, pickle.UnpicklingError) and refused:
        return (
            f"{source} is refused: besides tensors it holds Python objects ({refused[1]}), and reading those "
            "can run code from the file. Where it was made, save the weights alone: "
            "torch.save(model.state_dict(), PATH)"
        )
    elif zipfile.is_zipfile(path):
        reason = one_line(error)
    else:
        reason = "it is not a file of torch.save"
    return f"{source} can't be read as weights: {reason}; expected {EXPECTED}"


def _is_caffe2(path: str | Path) -> bool:
    """Whether it is like the .pkl files in PySlowFast's zoo: a pickle of {"blobs": {name: numpy array}}."""
    start = _start_of(path, 64)
    return start[:1] == b"\x80" and b"blobs" in start


def weights_in(content: Any, *, source: str) -> Weights:
    """The weights in what torch.load or safetensors returned.

    Args:
        content: a checkpoint or a state_dict.
        source: for messages: a path, a URL.

    Raises:
        UserError: there are no tensors where programs put them.
    """
    holder = content if isinstance(content, Mapping) else {}
    states = [holder[place] for place in _PLACES if isinstance(holder.get(place), Mapping)]
    tensors = {str(key): t for key, t in (states or [holder])[0].items() if isinstance(t, Tensor)}
    setting: OctaveSetting | None = OctaveSetting()
    pixels = class_names = None
    if isinstance(block := holder.get("octvideo"), Mapping):
        # Lightning's own state lies beside the network's.
        tensors = {key.removeprefix("network."): t for key, t in tensors.items() if key.startswith("network.")}
        built_from = block.get("network")
        setting = None if built_from is None else OctaveSetting.built_from(built_from)
        pixels = PixelScale(tuple(block["mean"]), tuple(block["std"])) if "mean" in block else None
        class_names = block.get("class_names")
    if not tensors:
        got = f"keys {first_of([str(key) for key in holder])}" if holder else f"a {type(content).__name__}"
        raise UserError(f"{source} holds no weights: got {got}, expected {EXPECTED}")
    for wrapper in _WRAPPERS:
        if all(key.startswith(wrapper) for key in tensors):
            tensors = {key.removeprefix(wrapper): tensor for key, tensor in tensors.items()}
    return Weights(tensors, source, setting, pixels, class_names)


def first_of(keys: Sequence[str]) -> str:
    """The first three, for a message."""
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
