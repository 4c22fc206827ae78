"""Whether what a training takes fits into memory, and which settings would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from rlaif.errors import SetupError

OFF = 0.1
"""What a step holds may be less than estimated by so much, as a share of the whole: a training is
refused only where even that would be too much."""
T = TypeVar("T")
Figures = Callable[[T], tuple[float, float]]
"""Bytes that are held at least, and taken at most."""
Help = tuple[str, Callable[[T], T]]
"""A setting as it is written, and what it changes."""


def verdict(
    plan: T,
    figures: Figures[T],
    helps: Callable[[T, Callable[[T], bool]], list[Help[T]]],
    free: float,
    where: str = "",
) -> str | None:
    """What to warn of where a plan may not fit into `free` bytes, with the settings that would make
    it fit; None where it fits. Raises SetupError where it cannot. `helps` gives the changes that
    may be told, by what fits by itself; `where` says of what the figures are."""
    least, most = figures(plan)
    if most <= free:
        return None

    def fits(plan: T) -> bool:
        return figures(plan)[1] <= free

    fix = _fix(plan, figures, helps(plan, fits), fits)
    told = f"training takes about {size(least)} to {size(most)} of memory{where}"
    if least * (1 - OFF) > free:
        raise SetupError(f"{told}, and {size(free)} are free", fix=fix)
    return f"{told}, and {size(free)} are free; if it does not fit, {fix}"


def largest_that_fits(
    plan: T, options: Iterable[Help[T]], fits: Callable[[T], bool]
) -> list[Help[T]]:
    """The first of the options that is enough by itself; else the last, where there is one."""
    found: list[Help[T]] = []
    for option in options:
        found = [option]
        if fits(option[1](plan)):
            break
    return found


def _fix(plan: T, figures: Figures[T], helps: Sequence[Help[T]], fits: Callable[[T], bool]) -> str:
    """The settings that make it fit: each that does so by itself, or else all of them."""
    alone = [told for told, change in helps if fits(change(plan))]
    if alone:
        return f"set {' or '.join(alone)}"
    together: list[str] = []
    for told, change in helps:
        if figures(change(plan))[1] < figures(plan)[1]:
            together.append(told)
            plan = change(plan)
        if fits(plan):
            return f"set {', '.join(together[:-1])} and {together[-1]} together"
    return "take a smaller base model, or a machine with more memory"


def size(count: float) -> str:
    """Bytes for people."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1e3:.0f} kB"
