"""Text as pixels: what fonts have is drawn, what they lack is said, and nothing is ever a box."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.ft2font import FT2Font

from octvideo import lettering
from octvideo.lettering import drawable, fitted_text, lacking, one_line_text, paint, shown_names, shown_text, text_mask

FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")
OTHER = str(FONTS / "STIXGeneral.ttf")


def only_in_other_font() -> str:
    """A letter that the font for everything lacks."""
    own = FT2Font(str(FONTS / "DejaVuSans.ttf")).get_charmap()
    return next(chr(code) for code in sorted(FT2Font(OTHER).get_charmap()) if code not in own and chr(code).isalpha())


@pytest.fixture
def system_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The fonts of this machine beside matplotlib's: none, until a test adds some."""
    fonts: list[str] = []
    monkeypatch.setattr(lettering, "findSystemFonts", lambda: fonts)
    monkeypatch.setattr(lettering, "_known", {})

    def forget() -> None:
        for cached in (lettering._system_fonts, lettering._mask, lettering._fitted):
            cached.cache_clear()

    forget()
    yield fonts
    forget()


def test_masks_of_a_size_stand_on_one_line() -> None:
    low, high, bold = text_mask("gym", 20), text_mask("\u00c5\u1ea4l", 20), text_mask("gym", 20, bold=True)
    assert low.shape[0] == high.shape[0] == bold.shape[0] == 30
    assert low.max() == 255 and low[0].max() == low[-1].max() == low[:, -1].min() == 0
    assert bold.sum() > 1.1 * low.sum()


def test_a_text_is_cut_to_a_width_with_dots() -> None:
    assert fitted_text("playing guitar", 20, 400) == "playing guitar"
    cut = fitted_text("playing guitar", 20, 100)
    assert cut.endswith("\u2026") and "playing guitar".startswith(cut[:-1]) and len(cut) > 5
    assert text_mask(cut, 20).shape[1] <= 100 < text_mask(cut[:-1] + "\u2026\u2026", 20).shape[1]
    assert fitted_text("playing guitar", 20, 3) == ""


def test_what_is_no_text_in_a_line_is_left_out() -> None:
    assert one_line_text("a\tb\n\x1b[31mc \udcff") == "a b [31mc \ufffd"


def test_arabic_letters_are_joined_and_go_from_right_to_left() -> None:
    if not lettering.features.check("raqm"):
        pytest.skip("this Pillow has no libraqm, or finds no libfribidi")
    joined, apart = text_mask("\u0628\u0628\u0628", 40), text_mask("\u0628\u200c\u0628\u200c\u0628", 40)
    assert joined.shape[1] < 0.8 * apart.shape[1]  # ZWNJ keeps letters apart
    first_letter_alone = text_mask("\u0627", 40)  # alef, a vertical stroke
    mixed = text_mask("\u0627\u0628", 40)
    ink = (mixed > 128).sum(0)
    assert ink[mixed.shape[1] // 2 :].max() >= 0.9 * (first_letter_alone > 128).sum(0).max()  # it stands at the right


def test_a_letter_comes_from_a_font_of_the_system(system_fonts: list[str]) -> None:
    letter = only_in_other_font()
    assert not drawable(f"a{letter}")
    lettering._known.clear()
    lettering._system_fonts.cache_clear()
    system_fonts.append(OTHER)
    assert drawable(f"a{letter}") and lacking([f"a{letter}"]) == ""
    assert text_mask(f"a{letter}", 30).shape[1] > text_mask("a", 30).shape[1]


def test_what_no_font_has_is_said_with_what_to_install(system_fonts: list[str]) -> None:
    names = ["walk", "\u8dd1\u6b65 (run)", "\u0926\u094c\u0921\u093c", "jump\u200d\ufe0f"]
    assert shown_names(names) == ["walk", "class 1", "class 2", "jump\u200d\ufe0f"]
    assert lacking(names) == (
        "no font here has \u0921\u0926\u093c\u094c\u6b65\u8dd1 "
        "(on Debian: apt install fonts-noto-cjk fonts-noto-core), and 2 class names are shown by number"
    )
    assert shown_text("\u8dd1.mp4") == "\ufffd.mp4" and drawable(shown_text("\u8dd1.mp4"))
    assert lacking(["walk"], "\u8dd1.mp4") == "no font here has \u8dd1 (on Debian: apt install fonts-noto-cjk)"
    assert lacking(["walk"], "a.mp4") == ""


def test_a_machine_that_can_not_join_letters_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering.features, "check", lambda name: False)
    assert "letters are not joined" in lacking(["\u0628"]) and "apt install libfribidi0" in lacking(["\u0628"])
    assert lacking(["walk"]) == ""


def test_paint_leaves_out_what_lies_outside() -> None:
    image = np.zeros((4, 5, 3), np.uint8)
    paint(image, np.full((3, 3), 255, np.uint8), -1, 2, (10, 20, 30))
    assert (image[2:, :2] == (10, 20, 30)).all() and image.sum() == 4 * 60
    paint(image, np.full((3, 3), 128, np.uint8), 4, 0, (200, 0, 0))
    assert (image[:3, 4] == (100, 0, 0)).all()
    paint(image, np.full((3, 3), 255, np.uint8), 9, 9, (1, 1, 1))
