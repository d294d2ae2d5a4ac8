"""The report: records as they come, and the page that is made of them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octvideo.files import json_text, markdown, whole_text

Record = dict[str, Any]


class Report:
    """Writes each record at once to results.jsonl, and report.md anew.

    A record has its "step". Either its "state" (running, done, skipped, failed, stopped), "seconds" and "said", why; or
    a result: its "key", by which a later one takes the place of an earlier, with "text", or "header" and "rows"; and
    "data", numbers that stand in results.jsonl alone.

    Args:
        folder: to write to; what an earlier run wrote there gets a number, as report.1.md.
        steps: title of each, in their order.
        head: what the page says first.
    """

    def __init__(self, folder: Path, steps: Mapping[str, str], head: str) -> None:
        self.lines, self.page = folder / "results.jsonl", folder / "report.md"
        self._steps, self._head, self._started = steps, head, time.monotonic()
        self._states: dict[str, Record] = {}
        self._results: dict[str, dict[str, Record]] = {step: {} for step in steps}
        folder.mkdir(parents=True, exist_ok=True)
        self._keep_earlier()
        self.lines.write_text("", encoding="utf-8")
        self._write_page()

    def _keep_earlier(self) -> None:
        """A GPU that measured it may be lent no more."""
        if not self.lines.exists() or not self.lines.stat().st_size:
            return
        number = 1
        while (kept := self.lines.with_name(f"results.{number}.jsonl")).exists():
            number += 1
        self.lines.replace(kept)
        if self.page.exists():
            self.page.replace(self.page.with_name(f"report.{number}.md"))

    def add(self, record: Record) -> None:
        """Takes a record."""
        record = {**record, "at": round(time.monotonic() - self._started, 1)}
        if "state" in record:
            self._states[record["step"]] = record
        else:
            results = self._results[record["step"]]
            results.pop(record["key"], None)  # the newest is the last
            results[record["key"]] = record
        with self.lines.open("a", encoding="utf-8") as file:
            file.write(json_text(record) + "\n")
        self._write_page()

    def state(self, step: str) -> str | None:
        """Of a step; None if it was not begun."""
        return self._states.get(step, {}).get("state")

    def _write_page(self) -> None:
        rows = []
        for number, (step, title) in enumerate(self._steps.items(), 1):
            state = self._states.get(step, {})
            seconds = f"{state['seconds']:.0f}" if "seconds" in state else ""
            rows.append((f"{number}. {title}", state.get("state", "not begun"), seconds, _cell(state.get("said", ""))))
        parts = [f"# GPU report\n\n{self._head}", markdown(("step", "state", "s", ""), rows)]
        for number, (step, title) in enumerate(self._steps.items(), 1):
            results = list(self._results[step].values())
            if results:
                parts += [f"## {number}. {title}", *map(_drawn, results)]
        with whole_text(self.page) as file:
            file.write("\n\n".join(parts) + "\n")


def _drawn(record: Record) -> str:
    parts = [record["text"]] if "text" in record else []
    if "rows" in record:
        parts.append(markdown(record["header"], [[_cell(cell) for cell in row] for row in record["rows"]]))
    return "\n\n".join(parts)


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def read_records(path: Path) -> list[Record]:
    """What results.jsonl holds."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
