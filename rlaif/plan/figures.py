"""A number with what it could be, and what stored calls say of calls to come."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from scipy import special

CONFIDENCE = 0.95


class Figure(NamedTuple):
    """A point and an interval around it."""

    low: float
    point: float
    high: float

    def __add__(self, other: object) -> Figure:
        """Ends are added to ends: never narrower than the truth."""
        if not isinstance(other, Figure):
            return NotImplemented
        return Figure(self.low + other.low, self.point + other.point, self.high + other.high)

    def times(self, other: Figure) -> Figure:
        """The product of two figures that are not negative."""
        return Figure(self.low * other.low, self.point * other.point, self.high * other.high)

    def within(self, least: float, most: float) -> Figure:
        """Kept between what can be."""
        return Figure(*(min(max(value, least), most) for value in self))


ZERO = Figure(0.0, 0.0, 0.0)


def exactly(value: float) -> Figure:
    """A figure that is known."""
    return Figure(value, value, value)


def total(figures: Iterable[Figure]) -> Figure:
    """The sum; ends are added to ends."""
    found = ZERO
    for figure in figures:
        found = found + figure
    return found


def known(figures: Iterable[Figure | None]) -> Figure | None:
    """The sum; one that is unknown makes it unknown."""
    found = ZERO
    for figure in figures:
        if figure is None:
            return None
        found = found + figure
    return found


def mean_to_come(seen: Sequence[float], coming: int) -> Figure:
    """The mean of `coming` more values like those seen: a 95 % prediction interval of Student's t
    (Hahn & Meeker 1991, section 4.8). One value seen says nothing of their spread: half to double.

    Raises ValueError where nothing has been seen.
    """
    if not seen:
        raise ValueError("nothing has been seen")
    m = len(seen)
    mean = sum(seen) / m
    if m == 1:
        return Figure(mean / 2, mean, mean * 2)
    sd = math.sqrt(sum((value - mean) ** 2 for value in seen) / (m - 1))
    t = float(special.stdtrit(m - 1, 0.5 + CONFIDENCE / 2))
    half = t * sd * math.sqrt(1 / m + 1 / max(coming, 1))
    return Figure(max(mean - half, 0.0), mean, mean + half)
