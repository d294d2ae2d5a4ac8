"""Checkpoints as files that are whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from octvideo.files import whole_file


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside the one that it replaces, and renames it when it is complete.

    Lightning's own writes to the system's temporary folder and then moves: where that is another file system, the move
    is a copy over the old checkpoint, and a run that is killed meanwhile has neither.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes `path`, with its folder."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, to_disk=True) as part, part.open("wb") as file:
            torch.save(checkpoint, file)
