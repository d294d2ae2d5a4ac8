"""Short animations of one textured shape on a textured background: the pictures of the demo data set.

A scene is drawn from a seed, then rendered as RGB frames. Shape, colours, size and place are drawn without
regard to the motion, so a single frame says little about it. Lengths are in pixels, angles in radians, x goes
right and y goes down, as in an image; time is in frames.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Generator, Tensor

Motion = Literal["left", "up", "clockwise", "approach"]
Pattern = Literal["stripes", "checks", "spots", "clouds"]
Shape = Literal["disc", "square", "bar", "cross", "triangle", "star", "blob"]

Colours = tuple[tuple[float, float, float], tuple[float, float, float]]
Choice = TypeVar("Choice")

PATTERNS: tuple[Pattern, ...] = ("stripes", "checks", "spots", "clouds")
SHAPES: tuple[Shape, ...] = ("disc", "square", "bar", "cross", "triangle", "star", "blob")
_WAVES = 6  # plane waves that make up the "clouds" pattern


@dataclass(frozen=True)
class Texture:
    """Two colours mixed by a pattern.

    Args:
        pattern: what it looks like.
        colours: two RGB triples in [0, 1].
        period: of the pattern, in pixels.
        waves: direction, relative frequency and phase of the plane waves of "clouds", (6, 3).
    """

    pattern: Pattern
    colours: Colours
    period: float
    waves: Tensor

    def paint(self, x: Tensor, y: Tensor) -> Tensor:
        """Colours at the given places.

        Args:
            x: any shape (...).
            y: the same shape.

        Returns:
            RGB in [0, 1], (..., 3).
        """
        first, second = torch.tensor(self.colours)
        share = self._share(2 * math.pi * x / self.period, 2 * math.pi * y / self.period)  # (...)
        return first + share[..., None] * (second - first)  # (...,3)

    def _share(self, x: Tensor, y: Tensor) -> Tensor:
        """How much of the second colour, (...); edges are soft, since video can't hold hard ones."""
        if self.pattern == "stripes":
            wave = x.sin() + 0.35 * (0.5 * x).sin()
        elif self.pattern == "checks":
            wave = 2 * x.sin() * y.sin()
        elif self.pattern == "spots":
            wave = x.sin() + (0.87 * y + 0.5 * x).sin() - 0.8
        else:
            wave = torch.zeros_like(x)
            for angle, frequency, phase in self.waves.tolist():
                wave = wave + (frequency * (math.cos(angle) * x + math.sin(angle) * y) + phase).sin()
            return (0.5 + 0.22 * wave).clamp(0, 1)
        return torch.sigmoid(3 * wave)


@dataclass(frozen=True)
class Scene:
    """One shape, where it is at each frame, and the background.

    Args:
        shape: its outline.
        lobes: size and phase of the two waves on the outline of a "blob", (2, 2).
        texture: of the shape, moving with it.
        background: does not move.
        centre: x and y at each frame, (T, 2).
        angle: at each frame, positive is clockwise, (T,).
        radius: at each frame, (T,).
    """

    shape: Shape
    lobes: Tensor
    texture: Texture
    background: Texture
    centre: Tensor
    angle: Tensor
    radius: Tensor

    def render(self, *, height: int, width: int) -> Tensor:
        """The frames, uint8 (T, H, W, 3)."""
        x, y = _pixel_centres(height, width)  # (H,W)
        background = self.background.paint(x, y)  # (H,W,3)
        u, v, outside = self._placed(x, y)  # (T,H,W)
        cover = (0.5 - outside).clamp(0, 1)[..., None]  # (T,H,W,1)
        # The texture grows with the shape: its period is for the shape in the middle of the video.
        size = float(self.radius.log().mean().exp())
        rim = (1 + outside / 2.5).clamp(0, 1)[..., None]  # (T,H,W,1), the shape is darker there
        painted = self.texture.paint(size * u, size * v) * (1 - 0.55 * rim)  # (T,H,W,3)
        frames = background + cover * (painted - background)  # (T,H,W,3)
        return (255 * frames).round().clamp(0, 255).to(torch.uint8)

    def boxes(self, *, height: int, width: int) -> Tensor:
        """Where the shape is in each frame: the edges of its bounding box, int64 (T, 4) as left, top, right, bottom.

        Right and bottom are excluded. Pixels count that the shape covers by half or more. Where none is in the frame
        the box is empty: (0, 0, 0, 0).
        """
        covered = self._placed(*_pixel_centres(height, width))[2] <= 0  # (T,H,W)
        boxes = torch.zeros(len(covered), 4, dtype=torch.int64)
        for box, frame in zip(boxes, covered, strict=True):
            rows, columns = frame.any(1).nonzero().flatten(), frame.any(0).nonzero().flatten()
            if len(rows):
                box.copy_(torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]))
        return boxes

    def _placed(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Places in the shape's own axes, in units of its radius, and pixels beyond its outline: (T, H, W) each."""
        dx = x - self.centre[:, 0, None, None]  # (T,H,W)
        dy = y - self.centre[:, 1, None, None]  # (T,H,W)
        cos, sin = self.angle.cos()[:, None, None], self.angle.sin()[:, None, None]
        radius = self.radius[:, None, None]
        u, v = (cos * dx + sin * dy) / radius, (cos * dy - sin * dx) / radius  # (T,H,W)
        return u, v, radius * _distance(self.shape, u, v, self.lobes)


def _pixel_centres(height: int, width: int) -> tuple[Tensor, Tensor]:
    """x and y, (H, W) each."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return x, y


def _distance(shape: Shape, u: Tensor, v: Tensor, lobes: Tensor) -> Tensor:
    """About how far a place is outside an outline of size 1, negative inside."""
    r, theta = torch.hypot(u, v), torch.atan2(v, u)
    if shape == "disc":
        return r - 0.9
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) - 0.8
    if shape == "bar":
        return torch.maximum(u.abs() - 1.0, v.abs() - 0.48)
    if shape == "cross":
        arms = torch.maximum(u.abs() - 1.0, v.abs() - 0.36), torch.maximum(v.abs() - 1.0, u.abs() - 0.36)
        return torch.minimum(*arms)
    if shape == "triangle":
        sides = [math.cos(a) * u + math.sin(a) * v for a in (math.pi / 2, math.pi * 7 / 6, math.pi * 11 / 6)]
        return torch.maximum(torch.maximum(sides[0], sides[1]), sides[2]) - 0.55
    if shape == "star":
        return r - 0.78 - 0.24 * (5 * theta).cos()
    (size_2, phase_2), (size_3, phase_3) = lobes.tolist()
    return r - 0.82 - size_2 * (2 * theta + phase_2).cos() - size_3 * (3 * theta + phase_3).cos()


def draw_scene(motion: Motion, generator: Generator, *, num_frames: int, height: int, width: int) -> Scene:
    """Draws one scene with the given motion.

    Appearance is drawn apart from the motion, and the middle of the video looks alike for all four.

    Args:
        motion: what the shape does.
        generator: the only source of randomness.
        num_frames: T.
        height: of the frames, in pixels.
        width: of the frames, in pixels.

    Example:
        >>> scene = draw_scene("left", Generator().manual_seed(0), num_frames=32, height=96, width=128)
        >>> scene.render(height=96, width=128).shape
        torch.Size([32, 96, 128, 3])
    """
    draw = _Draw(generator)
    hue = draw.between(0, 1)
    background = draw.texture(_muted(draw, hue), period=(0.12 * width, 0.35 * width))
    texture = draw.texture(_vivid(draw, hue), period=(0.09 * width, 0.16 * width))
    shape = draw.one_of(SHAPES)
    lobes = torch.tensor([[draw.between(0.08, 0.16), draw.angle()] for _ in range(2)])
    middle = torch.tensor([width * draw.between(0.42, 0.58), height * draw.between(0.42, 0.58)])
    size, angle = height * draw.between(0.20, 0.31), draw.angle()

    time = torch.arange(num_frames) - (num_frames - 1) / 2  # (T,), 0 in the middle
    centre = middle + time[:, None] * torch.tensor([draw.between(-0.15, 0.15), draw.between(-0.15, 0.15)])
    angles, radius = angle + 0 * time, size + 0 * time  # (T,), (T,)
    if motion == "left":
        centre[:, 0] -= time * width * draw.between(0.011, 0.021)
    elif motion == "up":
        centre[:, 1] -= time * height * draw.between(0.012, 0.022)
    elif motion == "clockwise":
        # Below 9 degrees a frame, or a star seen at every fourth frame seems to turn the other way.
        angles = angle + time * math.radians(draw.between(3.5, 6.5))
    else:
        radius = size * (time * draw.between(0.032, 0.05)).exp()
    return Scene(shape, lobes, texture, background, centre, angles, radius)


class _Draw:
    """Numbers and choices from one generator."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self._generator))

    def angle(self) -> float:
        return self.between(0, 2 * math.pi)

    def one_of(self, choices: Sequence[Choice]) -> Choice:
        return choices[int(torch.randint(len(choices), (), generator=self._generator))]

    def texture(self, colours: Colours, *, period: tuple[float, float]) -> Texture:
        pattern = self.one_of(PATTERNS)
        waves = torch.tensor([[self.angle(), self.between(0.4, 1.4), self.angle()] for _ in range(_WAVES)])
        return Texture(pattern, colours, self.between(*period), waves)


def _muted(draw: _Draw, hue: float) -> Colours:
    """Two colours of the background: little saturation, close to each other."""
    value = draw.between(0.25, 0.85)
    step = draw.between(0.10, 0.22) * (1 if value < 0.55 else -1)
    saturation = draw.between(0.12, 0.45)
    return (
        colorsys.hsv_to_rgb(hue, saturation, value),
        colorsys.hsv_to_rgb((hue + draw.between(-0.06, 0.06)) % 1, saturation, value + step),
    )


def _vivid(draw: _Draw, hue: float) -> Colours:
    """Two colours of the shape, one dark and one bright: on any background one of them stands out."""
    other = (hue + draw.between(0.25, 0.75)) % 1
    bright = colorsys.hsv_to_rgb(other, draw.between(0.6, 0.95), draw.between(0.85, 1.0))
    near = (other + draw.between(0.0, 0.3)) % 1
    return bright, colorsys.hsv_to_rgb(near, draw.between(0.5, 0.9), draw.between(0.15, 0.4))
