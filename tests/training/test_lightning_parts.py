"""A checkpoint is whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from octvideo.training.lightning_parts import WholeFiles


def test_a_checkpoint_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "last.ckpt"
    WholeFiles().save_checkpoint({"step": 3, "weights": torch.ones(2)}, path)
    assert WholeFiles().load_checkpoint(path)["step"] == 3
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_write_that_does_not_end_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    WholeFiles().save_checkpoint({"step": 3}, path)

    def half(content: Any, file: Any) -> NoReturn:
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        WholeFiles().save_checkpoint({"step": 4}, path)
    monkeypatch.undo()
    assert WholeFiles().load_checkpoint(path)["step"] == 3
    WholeFiles().save_checkpoint({"step": 5}, path)  # over what was left
    assert WholeFiles().load_checkpoint(path)["step"] == 5
