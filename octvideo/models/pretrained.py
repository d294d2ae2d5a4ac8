"""Networks to share: a folder of two files, on this machine or on the Hugging Face hub, and the network out of it.

What is in a folder comes from somebody else. So weights are safetensors, the network is built by a builder of
octvideo.models or not at all, and its shapes are compared with the file's before memory is taken for it.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from octvideo.errors import UserError
from octvideo.files import json_text, whole_file, whole_text
from octvideo.models.checkpoint import build_network
from octvideo.models.hub import download_repository, is_hub_name, name_of_cached
from octvideo.models.shared_files import CONFIG, SHARED_FILES, WEIGHTS, read_config, shapes_of, shared_weights
from octvideo.models.weights import load_weights

_MOST_ELEMENTS = 10**10  # of one network, 40 GB


def pretrained_folder(source: str | Path, *, revision: str | None = None) -> Path:
    """The folder that holds a shared network: as it is given, or in the hub's cache, downloaded where it is not there.

    Args:
        source: a folder; or hf:USER/NAME, or hf:USER/NAME@REVISION.
        revision: of the hub: a branch, a tag or a commit.

    Raises:
        UserError: there is none; see `octvideo.models.hub.download_repository`.
    """
    if is_hub_name(str(source)):
        return download_repository(str(source), SHARED_FILES, revision=revision)
    if revision is not None:
        raise UserError(f"revision {revision} with {source}: a folder has none, only hf:USER/NAME does")
    if not Path(source).is_dir():
        raise UserError(f"no folder {source}: give one that octvideo card RUN --hub wrote, or hf:USER/NAME")
    return Path(source)


def pretrained_network(source: str | Path, *, revision: str | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """A shared network with its weights, in eval mode, and what its config says: class names, views, mean, std.

    Args:
        source, revision: see `pretrained_folder`.

    Raises:
        UserError: there is none; its builder is not ours; weights do not fit, or are not finite.

    Example:
        >>> network, config = pretrained_network("hf:user/name", revision="v1")  # doctest: +SKIP
        >>> config["class_names"]  # doctest: +SKIP
        ['wave', 'sit']
    """
    folder = pretrained_folder(source, revision=revision)
    name = name_of_cached(folder)
    block = read_config(folder, name)
    with torch.device("meta"):  # nothing is allocated
        _check_fits(build_network(_ordinary(block), name), folder, name, block)
    network = build_network(block, name)
    _check_partitions(network, name, block)
    load_weights(network, shared_weights(folder, name), head="strict")
    return network.eval(), block


def write_pretrained(network: nn.Module, block: dict[str, Any], folder: Path) -> None:
    """Writes the two files, the config last: a folder with it is whole.

    Args:
        network: made by a builder of octvideo.models, with its weights.
        block: the "octvideo" block of its checkpoint.
        folder: which is there.
    """
    (folder / CONFIG).unlink(missing_ok=True)
    # Tensors that share memory, or lie in another order there, can't be written.
    state = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
    with whole_file(folder / WEIGHTS) as part:
        part.write_bytes(
            save(state, metadata={"format": "pt"})
        )  # save_file tells of a full disk by an error of its own
    content = {"library_name": "octvideo", "octvideo": {**block, "partitions": partitions_of(network)}}
    with whole_text(folder / CONFIG) as file:
        file.write(json_text(content, indent=1) + "\n")


def partitions_of(network: nn.Module) -> dict[str, dict[str, str]]:
    """Channels that each octave convolution reads and writes at half resolution, such as "0:4,60:64"."""
    return {
        path: {"in": _runs(module.partition_in.is_low), "out": _runs(module.partition_out.is_low)}
        for path, module in network.named_modules()
        if hasattr(module, "partition_in") and hasattr(module, "partition_out")
    }


def _runs(is_low: tuple[bool, ...]) -> str:
    runs, start = [], 0
    for low, members in groupby(is_low):
        stop = start + len(list(members))
        if low:
            runs.append(f"{start}:{stop}")
        start = stop
    return ",".join(runs)


def _ordinary(block: dict[str, Any]) -> dict[str, Any]:
    """The block of the ordinary network: its keys and shapes are the same, and it is built sooner."""
    built = block["network"]
    return {**block, "network": {**built, "init_args": {**built["init_args"], "alpha": 0.0, "octave": None}}}


def _check_fits(network: nn.Module, folder: Path, source: str, block: dict[str, Any]) -> None:
    """Raises UserError where the network of the config is not that of the weights, or has other classes."""
    own = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    theirs = shapes_of(folder, source)
    wrong = sorted(key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key))
    if wrong:
        got, expected = theirs.get(wrong[0], "none"), own.get(wrong[0], "none")
        raise UserError(
            f"{source}: {len(wrong)} weights in {WEIGHTS} do not fit {block['network']['class_path']} of {CONFIG}: got "
            f"{wrong[0]} {got}, expected {expected}; they are of two networks: download or write the folder again"
        )
    elements = sum(value.numel() for value in (*network.parameters(), *network.buffers()))
    if elements > _MOST_ELEMENTS:
        raise UserError(f"{source}: a network of {elements:.1e} weights, expected {_MOST_ELEMENTS:.0e} at most")
    classes = next((len(m.weight) for m in reversed(list(network.modules())) if isinstance(m, nn.Linear)), None)
    if classes not in (None, names := len(block["class_names"])):
        raise UserError(f"{source}: got {names} class names for a network of {classes} classes")


def _check_partitions(network: nn.Module, source: str, block: dict[str, Any]) -> None:
    """Raises UserError where this version would store other channels low than the one that wrote the weights."""
    own, theirs = partitions_of(network), block["partitions"]
    if wrong := sorted(path for path in own.keys() | theirs.keys() if own.get(path) != theirs.get(path)):
        raise UserError(
            f"{source}: octvideo {block.get('version')}, which wrote it, stores other channels at half resolution in "
            f"{len(wrong)} layers, first {wrong[0]}, so its accuracy would not be kept: install that version"
        )
