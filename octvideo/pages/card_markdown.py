"""A card as Markdown: README.md of a repository of the Hugging Face hub, which reads the YAML at its top."""

from __future__ import annotations

import re

import yaml

from octvideo._version import __version__
from octvideo.evaluation.report import percent, percent_range
from octvideo.files import markdown
from octvideo.pages.card import Card, Section, Table
from octvideo.pages.page import plain_text

_MARKS = re.compile(r"([\\`*\[\]<>|~$#]|&(?=\w+;|#)|(?<!\w)_|_(?!\w))")
_NO_LICENSE = "# license: state one before you publish, as in: octvideo card RUN --license apache-2.0\n"
_FOLDED = 30  # rows; longer tables are opened by a click


def card_markdown(card: Card) -> str:
    """The text of README.md."""
    metadata = yaml.safe_dump(dict(card.metadata), sort_keys=False, allow_unicode=True)
    front = f"---\n{'' if 'license' in card.metadata else _NO_LICENSE}{plain_text(metadata)}---"
    blocks = [front, f"# {as_text(card.title)}", as_text(card.said)]
    if card.figures:
        rows = [(as_text(f.name), percent(f.value), percent_range(f.interval)) for f in card.figures]
        blocks.append(markdown(("metric", "value", "95 % interval"), rows))
    if "license" not in card.metadata:
        blocks.append("**License: not stated.** Without one, nobody may use these weights.")
    for section in card.sections:
        blocks += [f"## {as_text(section.title)}", *_section(section)]
    return "\n\n".join([*blocks, f"Written by octvideo {__version__}."]) + "\n"


def as_text(text: str) -> str:
    """A text in one line that Markdown shows as it is, whatever it holds.

    Example:
        >>> as_text("a|b <i> clip_frames")
        'a\\\\|b \\\\<i\\\\> clip_frames'
    """
    return _MARKS.sub(r"\\\1", " ".join(plain_text(text).split()))


def _section(section: Section) -> list[str]:
    blocks = [as_text(text) for text in section.texts]
    if section.table is not None:
        blocks.append(_table(section.table))
    if section.items:
        blocks.append("\n".join(f"- {as_text(item)}" for item in section.items))
    if section.code:
        fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", section.code) or [""]))
        blocks.append(f"{fence}python\n{plain_text(section.code)}\n{fence}")
    return blocks


def _table(table: Table) -> str:
    rows = [[as_text(cell) for cell in row] for row in table.rows]
    text = markdown([as_text(name) for name in table.header], rows, left=table.left)
    if len(rows) <= _FOLDED:
        return text
    return f"<details>\n<summary>{len(rows)} rows</summary>\n\n{text}\n\n</details>"
