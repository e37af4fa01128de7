"""Pictures of shapes, drawn in torch: what the network of `classify` learns from. No file, no download; the same seed draws the same pictures.

A shape is a signed distance: how far a point lies outside (positive) or inside (negative). One comparison makes a picture of it,
and moving, turning and stretching the points beforehand moves, turns and stretches the shape.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

SIDE = 32  # pixels: enough to tell these shapes apart, and small enough to learn in seconds on one core


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.9


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.75


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    """Three half planes, a third of a turn apart."""
    angles = [math.tau * k / 3 + math.pi / 2 for k in range(3)]
    return torch.stack([x * math.cos(a) + y * math.sin(a) for a in angles]).amax(0) - 0.5


def _cross(x: Tensor, y: Tensor) -> Tensor:
    """Two bars."""
    across, along = x.abs(), y.abs()
    return torch.minimum(torch.maximum(across - 0.3, along - 0.95), torch.maximum(across - 0.95, along - 0.3))


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.7).abs() - 0.2


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "cross": _cross,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
}
CLASSES = tuple(SHAPES)


def draw(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """`count` pictures and their classes. -> (count, 1, SIDE, SIDE) float32 between 0 and 1, (count,) int64.

    Each is turned, moved, scaled and stretched at random, of any two greys that can be told apart, bright on dark or dark on
    bright, with noise: what varies here is what the network learns to overlook.
    """
    random = torch.Generator().manual_seed(seed)

    def between(low: float, high: float) -> Tensor:
        return torch.rand(count, 1, 1, generator=random) * (high - low) + low

    axis = torch.linspace(-1, 1, SIDE)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    x, y = x - between(-0.25, 0.25), y - between(-0.25, 0.25)
    turn, size, stretch = between(0, math.tau), between(0.4, 0.9), between(0.85, 1.15)
    x, y = (x * turn.cos() + y * turn.sin()) / size * stretch, (y * turn.cos() - x * turn.sin()) / size / stretch

    labels = torch.randint(len(SHAPES), (count,), generator=random)
    distances = torch.stack([shape(x, y) for shape in SHAPES.values()])[labels, torch.arange(count)]
    inside = torch.sigmoid(-distances * size * SIDE)  # soft over about a pixel, as a scaled-down picture is

    paper, contrast = between(0, 1), between(0.3, 1)
    ink = torch.where(paper > 0.5, paper - contrast, paper + contrast).clamp(0, 1)
    noise = torch.randn(count, SIDE, SIDE, generator=random) * between(0, 0.08)
    pictures = (paper + (ink - paper) * inside + noise).clamp(0, 1)
    return pictures.unsqueeze(1), labels
