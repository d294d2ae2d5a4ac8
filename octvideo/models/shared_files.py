"""The two files by which a network is shared: its weights, and what they belong to. No code comes out of them.

config.json        {"library_name": "octvideo", "octvideo": {...}}: the block of a checkpoint, and the low channels of
                   each octave convolution
model.safetensors  the state_dict; its keys and shapes are those of the ordinary network
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from octvideo.errors import UserError
from octvideo.files import one_line
from octvideo.models.weight_files import OctaveSetting, PixelScale, Weights, read_file

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SHARED_FILES = (CONFIG, WEIGHTS)
FORMAT = 1
_MOST_BYTES = 50_000_000  # of a config
_EXPECTED = "a folder that octvideo card RUN --hub wrote"


def is_shared_folder(folder: Path) -> bool:
    """Whether a folder holds one of the two files, so that the other is missed."""
    return any((folder / name).is_file() for name in SHARED_FILES)


def read_config(folder: Path, source: str) -> dict[str, Any]:
    """The block in the config of a folder.

    Args:
        folder: with both files.
        source: for messages.

    Raises:
        UserError: a file is missing, or the config is damaged, none of ours, or of a newer version.
    """
    for name in SHARED_FILES:
        if not (folder / name).is_file():
            raise UserError(f"{source} has no {name}: expected {_EXPECTED}")
    file = folder / CONFIG
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has {file.stat().st_size} bytes")
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: {CONFIG} can't be read ({one_line(error)}): expected {_EXPECTED}") from error
    block = content.get("octvideo") if isinstance(content, dict) else None
    if not isinstance(block, dict):
        raise UserError(f"{source} is no network of octvideo ({CONFIG} has no part of it): expected {_EXPECTED}")
    if block.get("format") != FORMAT:
        found = block.get("format")
        raise UserError(f"{source} has format {found!r}, this octvideo reads {FORMAT}: upgrade octvideo")
    for what, fits in _fits(block).items():
        if not fits:
            raise UserError(f"{source}: {CONFIG} is damaged: got {str(block.get(what))[:80]!r} for {what}")
    return block


def _fits(block: dict[str, Any]) -> dict[str, bool]:
    """Whether each part of a block has its form."""
    network, names = block.get("network"), block.get("class_names")
    return {
        "network": isinstance(network, dict)
        and isinstance(network.get("class_path"), str)
        and isinstance(network.get("init_args"), dict),
        "class_names": isinstance(names, list) and len(names) > 0 and all(isinstance(name, str) for name in names),
        "views": block.get("views") is None or isinstance(block["views"], dict),
        **{what: _are_numbers(block.get(what)) for what in ("mean", "std")},
        "partitions": isinstance(block.get("partitions"), dict),
    }


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 3 and all(type(value) in (int, float) for value in values)


def shapes_of(folder: Path, source: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a folder's weights, of which nothing is read.

    Raises:
        UserError: they are damaged.
    """
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{source}: {WEIGHTS} can't be read ({one_line(error)}): download or write it again") from error


def shared_weights(folder: Path, source: str) -> Weights:
    """The weights of a folder, with what they were trained as.

    Raises:
        UserError: see `read_config`; or the weights are damaged.
    """
    block = read_config(folder, source)
    read = read_file(folder / WEIGHTS, source=source)
    pixels = PixelScale(tuple(block["mean"]), tuple(block["std"]))
    return Weights(read.tensors, source, OctaveSetting.built_from(block["network"]), pixels, block["class_names"])
