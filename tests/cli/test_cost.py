"""`octvideo cost`: the known costs, the paper's figures beside them, mistakes in one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Cli = Callable[..., tuple[str, str]]


def rows(markdown: str) -> dict[tuple[str, str], list[str]]:
    """Cells by network and alpha."""
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in markdown.splitlines()]
    return {(cells[0], cells[1]): cells[2:] for cells in lines[2:]}


def written_by_i3d() -> int:
    """Numbers that the convolutions of I3D-50 write for 8 frames of 224 x 224, layer by layer."""
    total = 64 * 8 * 112**2  # the stem; pooling halves its map to 56 x 56
    size_in = 56
    for depth, inner, frames, size in ((3, 64, 8, 56), (4, 128, 4, 28), (6, 256, 4, 14), (3, 512, 4, 7)):
        first_a = inner * frames * size_in**2  # its stride is in the second convolution
        other_a = (depth - 1) * inner * frames * size**2
        shortcut = 4 * inner * frames * size**2
        total += first_a + other_a + depth * (inner + 4 * inner) * frames * size**2 + shortcut
        size_in = size
    return total


@pytest.mark.parametrize(
    ("name", "giga", "oct_giga", "paper", "oct_paper", "parameters"),
    [
        pytest.param("c2d_r50", 19.49, 17.4, "19.3", "17.4", "24.33", marks=pytest.mark.slow),
        ("i3d_r50", 28.41, 25.6, "28.1", "25.6", "28.04"),
    ],
)
def test_known_costs_beside_the_papers(
    name: str, giga: float, oct_giga: float, paper: str, oct_paper: str, parameters: str, octvideo: Cli
) -> None:
    """Ordinary: counted on pytorchvideo's networks. Octave: within 1.5 % of Table 8 of arXiv 1904.05049."""
    out, err = octvideo("cost", "--networks", name, "--alphas", 0, 0.1, 0.5, "--markdown")
    assert err == ""
    header = "| network | alpha | multiply-adds (G) | of ordinary | paper (G) | parameters (M) | activations (MB) |"
    assert out.startswith(header)
    table = rows(out)
    assert len(table) == 3
    ordinary, octave, half = (table[name, alpha] for alpha in ("0", "0.1", "0.5"))
    assert float(ordinary[0]) == pytest.approx(giga, rel=0.005)
    assert float(octave[0]) == pytest.approx(oct_giga, rel=0.015)
    assert [row[2] for row in (ordinary, octave, half)] == [paper, oct_paper, ""]
    assert [row[3] for row in (ordinary, octave, half)] == [parameters] * 3
    assert ordinary[1] == ordinary[5] == "100 %" and octave[1] == "90 %"
    assert float(half[4]) < float(octave[4]) < float(ordinary[4])
    if name == "i3d_r50":
        assert float(ordinary[4]) == pytest.approx(4e-6 * written_by_i3d(), abs=0.05)


def test_table_for_the_terminal_compares_with_the_ordinary_network_even_if_not_asked_for(octvideo: Cli) -> None:
    words = ("--networks", "i3d_small", "c2d_small", "--alphas", 0.25, "--num_classes", 3, "--clip", "2x3x4x64x64")
    out, _ = octvideo("cost", *words)
    lines = [line.split() for line in out.splitlines() if "_small" in line]
    assert [line[:2] for line in lines] == [["i3d_small", "0.25"], ["c2d_small", "0.25"]]
    assert all(int(line[3]) < 100 for line in lines)
    assert "one clip of 2x3x4x64x64" in out
    assert len(lines[0]) == 9  # no figure of the paper


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--clip", "8x224"], "clip: got '8x224', expected NxCxTxHxW with C = 3, such as 1x3x8x224x224"),
        (["--clip", "1x3x8x0x224"], "clip: got '1x3x8x0x224', expected NxCxTxHxW with C = 3"),
        (["--clip", "1x3x1x64x64"], "i3d_small takes no clip of 1x3x1x64x64: the clip has 1 frame, expected"),
        (["--networks", "resnet"], "no network 'resnet': there are c2d_r50, c2d_small, i3d_r50, "),
        (["--alphas", "1.5"], "alpha: got 1.5, expected the share of low-frequency channels, 0 to 1"),
        (["--num_classes", "0"], "--num_classes: got 0, expected 1 or more"),
    ],
)
def test_mistakes_are_one_line(args: list[str], message: str, octvideo: Cli) -> None:
    out, err = octvideo("cost", "--networks", "i3d_small", *args, code=2)
    assert not out
    assert err.startswith(f"error: {message}") and len(err.splitlines()) == 1
