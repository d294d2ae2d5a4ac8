"""Checkpoints of octvideo: read without their tensors in memory, refused in words, and their networks built again."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import octvideo.models as models
from octvideo.errors import UserError
from octvideo.files import one_line
from octvideo.models.shared_files import is_shared_folder
from octvideo.models.weights import load_weights, weights_in


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The whole content of a checkpoint, tensors mapped from the file rather than read.

    Raises:
        UserError: no such file, or not a checkpoint of octvideo.
    """
    if Path(path).is_dir() and is_shared_folder(Path(path)):
        raise UserError(f"{path} is a network to share, no checkpoint of a run: start from it with --init {path}")
    if not Path(path).is_file():
        raise UserError(f"no checkpoint at {path}: give a run's name or folder, a checkpoint, or 'last' for the newest")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} can't be read as a checkpoint: it is not a file of torch.save")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch has no common type for "not a checkpoint"
        raise UserError(f"{path} can't be read as a checkpoint: {one_line(error)}") from error
    block = content.get("octvideo") if isinstance(content, dict) else None
    if not isinstance(block, dict):
        raise UserError(f"{path} is no checkpoint of octvideo; to train from other weights: octvideo fit --init {path}")
    if block["format"] != 1:
        raise UserError(f"{path} has format {block['format']}, this octvideo reads 1: upgrade octvideo")
    return content


def build_network(block: dict[str, Any], path: str | Path) -> nn.Module:
    """The network that a checkpoint's "octvideo" block describes, without its weights.

    Raises:
        UserError: the block names no builder, one that is not ours, or arguments that it does not take.
    """
    built_from = block["network"]
    if built_from is None:
        raise UserError(
            f"{path} does not say how its network was built: make it with a builder of octvideo.models, or build it "
            "yourself and use Predictor(network, class_names, views=...)"
        )
    module, _, name = built_from["class_path"].rpartition(".")
    # A path in a file is code to run: our own builders only.
    if module != "octvideo.models" or name not in models.__all__:
        raise UserError(f"{path} names the builder {built_from['class_path']}, expected one of octvideo.models")
    try:
        return getattr(models, name)(**built_from["init_args"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError) as error:  # what other types of values give
        raise UserError(f"{path}: octvideo.models.{name} takes no such arguments ({one_line(error)})") from error


def trained_network(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a checkpoint with its weights, in eval mode, and the checkpoint's "octvideo" block.

    Raises:
        UserError: no such file, or none of ours; the weights do not fit, or are not finite.
    """
    content = read_checkpoint(path)
    block = content["octvideo"]
    network = build_network(block, path)
    load_weights(network, weights_in(content, source=str(path)), head="strict")
    return network.eval(), block
