"""What a step is told, and how it tells what it finds."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Settings:
    """What all steps are told.

    Args:
        device: that is measured, as users name it.
        folder: where files beside the report go.
        cache: a folder that lives as long as the report's run: of torch's compiler, and for what steps tell each other.
        tiny: small networks, to try the report itself.
        backend: of torch.compile.
        tests: paths that pytest is given; none: those with tests for a GPU.
        roofline: files that tools/roofline.py --json wrote.
    """

    device: str
    folder: str
    cache: str
    tiny: bool = False
    backend: str = "inductor"
    tests: tuple[str, ...] = ()
    roofline: tuple[str, ...] = ()

    @property
    def torch_device(self) -> torch.device:
        """The device."""
        return torch.device(self.device)

    def prepare(self) -> None:
        """Lets torch.compile in this process use the backend."""
        if self.backend != "inductor":
            torch.compile = functools.partial(torch.compile, backend=self.backend)  # type: ignore[assignment]

    def to_json(self) -> str:
        """For `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """What `to_json` was called on."""
        content = json.loads(text)
        return cls(**{**content, "tests": tuple(content["tests"]), "roofline": tuple(content["roofline"])})


class NothingToDoError(Exception):
    """What a step needs is not there, and another step has said why."""


class Work:
    """A step while it is done.

    Args:
        settings: of all steps.
        seconds: that it may take.
        hear: gets each record.
    """

    def __init__(self, settings: Settings, seconds: float, hear: Callable[[dict[str, Any]], None]) -> None:
        self.settings, self.device = settings, settings.torch_device
        self._ends, self._hear = time.monotonic() + seconds, hear

    @property
    def left(self) -> float:
        """Seconds until its process is ended."""
        return self._ends - time.monotonic()

    def say(
        self,
        key: str,
        text: str | None = None,
        *,
        header: Sequence[str] = (),
        rows: Sequence[Sequence[Any]] | None = None,
        data: Any = None,
    ) -> None:
        """Gives a result; see `Report`."""
        record: dict[str, Any] = {"key": key}
        if text is not None:
            record["text"] = text
        if rows is not None:
            record |= {"header": list(header), "rows": [list(map(str, row)) for row in rows]}
        if data is not None:
            record["data"] = data
        self._hear(record)
