"""The model without a node: a plain class, loaded and called as a worker does. Needs an interpreter with torch."""

import math

import pytest

import faas

pytest.importorskip("torch")

from handler import Model, Points

CONTEXT = faas.Context(function="FUNCTION", tenant="default")


@pytest.fixture(scope="module")
def model() -> Model:
    loaded = Model()
    loaded.load(CONTEXT)
    return loaded


@pytest.mark.parametrize("x", [-math.pi / 2, 0.0, 1.0])
def test_the_curve_is_near_the_sine(model: Model, x: float) -> None:
    (y,) = model.handle(Points(x=[x]), CONTEXT).y

    assert abs(y - math.sin(x)) < 0.1


def test_no_points_have_no_curve(model: Model) -> None:
    assert model.handle(Points(x=[]), CONTEXT).y == []
