"""What `octvideo convert` has done of a conversion, in files of its folder: an interrupted command goes on with it."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from octvideo.files import whole_file
from octvideo.inference.conversion import Clips, Trained

_UNFINISHED, _SPECTRUM = "unfinished.pt", "spectrum.pt"
_KEEP_EVERY_S = 20.0


class Kept:
    """Of one command.

    What was measured depends on the network and on the clips alone. It stays when the command has ended, for another
    alpha, cost or time of the same folder. All else is of this command, and goes with it.

    Args:
        folder: it is made when there is something to keep.
        asked: what the result depends on, by name.
        octave: options of octave layers.
        ordinary: the network.
        clips: those that are measured.
        seed: of what is drawn.
    """

    def __init__(
        self,
        folder: Path,
        asked: Mapping[str, Any],
        octave: Mapping[str, Any],
        ordinary: Trained,
        clips: Clips,
        seed: int,
    ) -> None:
        measured = hashlib.sha256(repr((sorted(octave.items()), seed, ordinary.mean, ordinary.std)).encode())
        for value in [*ordinary.network.state_dict().values(), *clips.pixels]:
            measured.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        self.key = hashlib.sha256(repr((measured.digest(), sorted(asked.items()))).encode()).hexdigest()
        self._keys = {_SPECTRUM: measured.hexdigest(), _UNFINISHED: self.key}
        self._folder = folder
        self._missing = [path for path in (folder, *folder.parents) if not path.exists()]
        self._states: dict[str, Any] = {}  # what was chosen and fitted, by step
        self._spectrum: Any = None
        self._written = time.monotonic()

    def __enter__(self) -> Kept:
        self._spectrum, self._states = self._read(_SPECTRUM), self._read(_UNFINISHED) or {}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._states = {}
        self._write()
        if kind is None:
            (self._folder / _UNFINISHED).unlink(missing_ok=True)

    def options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options of a `Calibration` that goes on where an earlier one was."""
        name = options.get("refit", "")
        begun = {"spectrum": self._spectrum, **self._states.get(name, {})}

        def keep(state: dict[str, Any]) -> None:
            self._spectrum = state.get("spectrum")
            if "fitted" in state:
                self._states[name] = {key: value for key, value in state.items() if key != "spectrum"}
            if time.monotonic() - self._written > _KEEP_EVERY_S:
                self._write()

        return {**options, "keep": keep, "begun": {key: value for key, value in begun.items() if value is not None}}

    def once(self, name: str, find: Callable[[], Any]) -> Any:
        """What `find` gives, or gave before: times that are measured again differ."""
        if name not in self._states:
            self._states[name] = find()
            self._write()
        return self._states[name]

    def drop(self) -> None:
        """Leaves nothing that was not there before: what is asked for cannot be had."""
        self._states = {}
        if self._folder in self._missing:
            self._spectrum = None
            shutil.rmtree(self._folder, ignore_errors=True)
            for parent in self._missing[1:]:
                with contextlib.suppress(OSError):  # it is not empty, or was never made
                    parent.rmdir()

    def _read(self, name: str) -> Any:
        file = self._folder / name
        if not file.exists():
            return None
        held = torch.load(file, weights_only=True)
        return held["states"] if held.get("key") == self._keys[name] else None

    def _write(self) -> None:
        for name, states in ((_SPECTRUM, self._spectrum), (_UNFINISHED, self._states)):
            if states:  # else a file there may be another command's
                self._folder.mkdir(parents=True, exist_ok=True)
                with whole_file(self._folder / name) as part:
                    torch.save({"key": self._keys[name], "states": states}, part)
        self._written = time.monotonic()
