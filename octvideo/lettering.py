"""Text of any script as pixels, with the fonts that this machine has.

matplotlib brings DejaVu Sans, which has Latin, Greek, Cyrillic, Arabic, Hebrew and more. A character that it lacks is
looked for in the system's fonts. Pillow joins Arabic letters and orders lines from right to left where libfribidi is
installed. What no font has is never drawn as boxes: `drawable` says so before, and `lacking` says what to install.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.font_manager import findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont, features

# Above and below the baseline, in sizes of the font: what letters with marks above each other need.
_ABOVE, _BELOW = 1.08, 0.36
# Scripts between these change letters by their neighbours, beside those from right to left: Indic ones to Khmer.
_JOINED = ((0x0900, 0x0DFF), (0x0F00, 0x109F), (0x1780, 0x17FF))
_EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "FULLWIDTH", "HALFWIDTH", "IDEOGRAPHIC")


def text_mask(text: str, size_px: int, *, bold: bool = False) -> np.ndarray:
    """Text in one line, to be painted in any colour.

    Args:
        text: line breaks become spaces.
        size_px: of the font.
        bold: if the font has a bold face here.

    Returns:
        How much of each pixel is covered, uint8 (h, w), read only. `h` and the line that letters stand on depend on
        the size alone, so that texts of one size stand beside each other.
    """
    return _mask(one_line_text(text), size_px, bold)


def fitted_text(text: str, size_px: int, width_px: int, *, bold: bool = False) -> str:
    """So much of a text that it is `width_px` wide at most, with … for the rest."""
    return _fitted(one_line_text(text), size_px, width_px, bold)


def one_line_text(text: str) -> str:
    """The text without what can't stand in a line: control characters, and bytes that are no text."""
    kept = ("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)
    return " ".join("".join(" " if unicodedata.category(char) == "Cc" else char for char in kept).split())


def drawable(text: str) -> bool:
    """Whether fonts are here for all of a text."""
    return all(font is not None for _, font in _each_font(one_line_text(text)))


def shown_names(names: Sequence[str]) -> list[str]:
    """The names of classes; "class 17" for one that no font here has."""
    return [name if drawable(name) else f"class {number}" for number, name in enumerate(names)]


def shown_text(text: str) -> str:
    """A text with \ufffd for each character that no font here has."""
    return "".join("\ufffd" if font is None else char for char, font in _each_font(one_line_text(text)))


def font_families(texts: Iterable[str]) -> list[str]:
    """Families for what matplotlib writes itself, which takes the first that has a character.

    Args:
        texts: that are written, as `shown_names` and `shown_text` give them.
    """
    needed = {font for text in texts for _, font in _each_font(one_line_text(text)) if font is not None}
    return list(dict.fromkeys(map(_family, [_own_font(bold=False), *sorted(needed)])))


@functools.cache
def _family(path: str) -> str:
    if path != _own_font(bold=False):
        fontManager.addfont(path)
    return FT2Font(path).family_name


def lacking(names: Sequence[str], title: str = "") -> str:
    """What can't be drawn as it should be, and what to install, in one line; "" if nothing.

    Args:
        names: of classes, which `shown_names` shows.
        title: which `shown_text` shows.
    """
    num_names = sum(not drawable(name) for name in names)
    absent = sorted({char for text in (*names, title) for char, font in _each_font(one_line_text(text)) if not font})
    said = []
    if absent:
        packages = sorted({_package(char) for char in absent} - {""})
        install = f" (on Debian: apt install {' '.join(packages)})" if packages else ""
        count = (
            f", and {num_names} class name{'s are' if num_names > 1 else ' is'} shown by number" if num_names else ""
        )
        said.append(f"no font here has {''.join(absent[:8])}{install}{count}")
    if not features.check("raqm") and any(map(_is_joined, "".join((*names, title)))):
        install = "(on Debian: apt install libfribidi0)"
        said.append(
            f"letters are not joined, nor ordered from right to left: Pillow finds no libfribidi here {install}"
        )
    return "; ".join(said)


def _package(character: str) -> str:
    """Debian's fonts for a character. Emoji have colours, which are not drawn."""
    name = unicodedata.name(character, "")
    if name.startswith(_EAST_ASIAN):
        return "fonts-noto-cjk"
    return "fonts-noto-core" if name and ord(character) < 0x1F000 else ""


def _is_joined(character: str) -> bool:
    rtl = unicodedata.bidirectional(character) in ("R", "AL")
    return rtl or any(first <= ord(character) <= last for first, last in _JOINED)


# ── fonts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def _own_font(*, bold: bool) -> str:
    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"DejaVuSans{'-Bold' if bold else ''}.ttf"))


@functools.cache
def _system_fonts() -> list[str]:
    """Files of fonts, plain sans-serif ones first. Looked for anew in each process: matplotlib's list may be old."""

    def rank(path: str) -> tuple[int, str]:
        name = Path(path).stem.lower()
        odd = any(
            word in name for word in ("bold", "black", "heavy", "thin", "light", "italic", "oblique", "condensed")
        )
        other = any(word in name for word in ("mono", "serif", "slab", "emoji", "symbol"))
        return 4 * odd + 2 * other + ("noto" not in name), path

    return sorted(findSystemFonts(), key=rank)


_known: dict[str, str | None] = {}  # character -> file of its font


def _each_font(text: str) -> list[tuple[str, str | None]]:
    """Each character of a text, and the file of a font that has it, None where there is none."""
    absent = {char for char in text if char not in _known}
    for path in (_own_font(bold=False), *(_system_fonts() if absent - _characters(_own_font(bold=False)) else ())):
        if not absent:
            break
        found = absent & (_characters(path) if path == _own_font(bold=False) else _read_characters(path))
        _known.update(dict.fromkeys(found, path))
        absent -= found
    # Marks that only say how letters are joined need no picture.
    _known.update({char: _own_font(bold=False) if _needs_nothing(char) else None for char in absent})
    return [(char, _known[char]) for char in text]


def _needs_nothing(character: str) -> bool:
    return unicodedata.category(character) in ("Cf", "Zs") or "\ufe00" <= character <= "\ufe0f"


@functools.cache
def _characters(path: str) -> frozenset[str]:
    return frozenset(_read_characters(path))


def _read_characters(path: str) -> set[str]:
    """All characters of a font; none where it can't be read, or has pictures of one size only."""
    try:
        font = FT2Font(path)
        return {chr(code) for code in font.get_charmap()} if font.num_fixed_sizes == 0 else set()
    except (OSError, RuntimeError, ValueError):
        return set()


@functools.lru_cache(maxsize=64)
def _face(path: str, size_px: int) -> ImageFont.FreeTypeFont:
    # Of a collection for East Asia the simplified Chinese face: the first is Japanese, with other forms of letters.
    if Path(path).suffix.lower() == ".ttc":
        for index in range(16):
            try:
                face = ImageFont.truetype(path, size_px, index=index)
            except OSError:
                break
            if " SC" in f" {face.getname()[0]}":
                return face
    return ImageFont.truetype(path, size_px)


# ── pixels ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _runs(text: str) -> list[tuple[str, str]]:
    """Parts of a text that one font draws, from left to right, and its file."""
    runs: list[tuple[str, str]] = []
    for char, font in _each_font(text):
        path = font or _own_font(bold=False)
        # Spaces, digits and marks stay with the letters before them, where the font has them.
        if runs and (runs[-1][1] == path or unicodedata.combining(char) or _needs_nothing(char)):
            runs[-1] = runs[-1][0] + char, runs[-1][1]
        else:
            runs.append((char, path))
    strong = next((b for b in map(unicodedata.bidirectional, text) if b in ("L", "R", "AL")), "L")
    return runs if strong == "L" else runs[::-1]


@functools.lru_cache(maxsize=4096)
def _mask(text: str, size_px: int, bold: bool) -> np.ndarray:
    own = _own_font(bold=False)
    bold = bold and all(char in _characters(_own_font(bold=True)) for char in text)
    placed, width = [], 0.0
    for part, path in _runs(text):
        face = _face(_own_font(bold=True) if bold and path == own else path, size_px)
        placed.append((width, part, face))
        width += face.getlength(part)
    image = Image.new("L", (max(math.ceil(width), 1), math.ceil(_ABOVE * size_px) + math.ceil(_BELOW * size_px)))
    draw = ImageDraw.Draw(image)
    for left, part, face in placed:
        draw.text((left, math.ceil(_ABOVE * size_px)), part, fill=255, font=face, anchor="ls")
    mask = np.asarray(image)
    mask.flags.writeable = False
    return mask


@functools.lru_cache(maxsize=4096)
def _fitted(text: str, size_px: int, width_px: int, bold: bool) -> str:
    if _mask(text, size_px, bold).shape[1] <= width_px:
        return text
    fits, wide = 0, len(text)  # characters that fit with the dots, and that do not
    while wide - fits > 1:
        middle = (fits + wide) // 2
        if _mask(_shortened(text, middle), size_px, bold).shape[1] <= width_px:
            fits = middle
        else:
            wide = middle
    return _shortened(text, fits) if fits else ""


def _shortened(text: str, length: int) -> str:
    while length and unicodedata.combining(text[length]):
        length -= 1
    return text[:length].rstrip() + "\u2026"


def paint(image: np.ndarray, mask: np.ndarray, left: int, top: int, colour: Iterable[int]) -> None:
    """Paints a mask in a colour onto an image.

    Args:
        image: uint8 (H, W, C), changed; what lies outside of it is left out.
        mask: uint8 (h, w).
        left: of the mask in the image; may be negative.
        top: likewise.
        colour: C values, 0 to 255.
    """
    height, width = image.shape[:2]
    rows, columns = (
        slice(max(top, 0), min(top + mask.shape[0], height)),
        slice(max(left, 0), min(left + mask.shape[1], width)),
    )
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    part = image[rows, columns]
    share = mask[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left, None].astype(np.uint16)
    part[:] = (part * (255 - share) + np.array(list(colour), np.uint16) * share + 127) // 255
