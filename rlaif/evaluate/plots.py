"""The figures of the report: the only file that imports matplotlib.

Figures are drawn in the colours of `LIGHT`. In the HTML each of these becomes a CSS variable, so
that the same figure follows the reader's light or dark mode.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from rlaif.evaluate import wording
from rlaif.evaluate.intervals import Interval
from rlaif.evaluate.overoptimization import Overoptimization
from rlaif.evaluate.schema import Report

LIGHT = {
    "ink": "#1f2530",
    "muted": "#69727f",
    "grid": "#dde1e7",
    "rm": "#2f67b1",
    "dpo": "#c7651a",
    "base": "#7a818c",
}
"""Role -> colour. No two may be equal: the SVG is turned into CSS variables by colour."""

MARKERS = {"rm": "o", "dpo": "s", "base": "D"}
"""Role -> marker, so that print without colour tells them apart."""

STYLE: Any = {
    "svg.hashsalt": "rlaif",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.edgecolor": LIGHT["grid"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.unicode_minus": True,
}
LN2 = float(np.log(2.0))


@dataclass(frozen=True)
class Dot:
    """One row of a dot-and-whisker plot."""

    label: str
    interval: Interval
    color: str
    """A key of `LIGHT`."""


@dataclass(frozen=True)
class Curve:
    """The loss of one training run, a value a step."""

    label: str
    losses: Sequence[float]
    color: str
    """A key of `LIGHT`."""


def svg(draw: Callable[[Any], None], *, name: str, label: str, size: tuple[float, float]) -> str:
    """An inline `<svg>` of what `draw` puts on an axes; the same input gives the same bytes.

    `name` keeps ids apart from those of other figures on the page; `label` is read to those who
    cannot see it; `size` is in inches.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        file = StringIO()
        figure.savefig(file, format="svg", transparent=True)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)  # holds the date
    text = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", text)  # HTML needs no namespaces
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r"<svg \1\2", text)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"([^>]*?)height="[^"]*"', r"<svg \1\2", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|xlink:href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    for role, color in LIGHT.items():
        text = text.replace(color, f"var(--{role})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def draw_loss(axes: Any, curves: Sequence[Curve], title: str) -> None:
    """Loss at each step, its running mean, and ln 2: the loss of a model that knows nothing."""
    axes.grid(axis="y", color=LIGHT["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.axhline(LN2, color=LIGHT["base"], linestyle=(0, (4, 3)), linewidth=1)
    axes.annotate(
        "ln 2: no knowledge",
        (1, LN2),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=LIGHT["muted"],
    )
    for curve in curves:
        S = len(curve.losses)
        step_S = np.arange(1, S + 1)
        window = max(1, S // 10)
        mean_S = np.convolve(curve.losses, np.ones(window))[:S] / np.minimum(step_S, window)
        color = LIGHT[curve.color]
        axes.plot(step_S, curve.losses, color=color, alpha=0.35, linewidth=1)
        dot = "o" if S == 1 else ""
        axes.plot(step_S, mean_S, color=color, linewidth=2, marker=dot, label=curve.label)
    if len(curves) > 1:
        axes.legend(frameon=False, loc="lower left", fontsize=9)
    lowest = min(min(curve.losses) for curve in curves)
    highest = max(max(curve.losses) for curve in curves)
    axes.set_title(title)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss (nats a comparison)")
    axes.set_ylim(min(0.0, lowest), max(1.08 * highest, 0.8))
    axes.xaxis.get_major_locator().set_params(integer=True)


def draw_dots(axes: Any, dots: Sequence[Dot], line: float, title: str, share: bool = True) -> None:
    """Estimates with their intervals, top to bottom, and the value that means "no effect"; their
    numbers stand in a column beside the axes, where they cross nothing."""
    scale = 100.0 if share else 1.0
    axes.grid(axis="x", color=LIGHT["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.axvline(line * scale, color=LIGHT["base"], linestyle=(0, (4, 3)), linewidth=1)
    for row, dot in enumerate(dots):
        color, interval = LIGHT[dot.color], dot.interval
        if interval.low is not None and interval.high is not None:
            ends = [interval.low * scale, interval.high * scale]
            axes.plot(ends, [row, row], color=color, linewidth=2.2, solid_capstyle="round")
        axes.plot(interval.value * scale, row, MARKERS[dot.color], color=color, markersize=6.5)
        axes.annotate(
            wording.share(interval, line) if share else wording.amount(interval),
            (1.02, row),
            xycoords=("axes fraction", "data"),
            annotation_clip=False,
            va="center",
            fontsize=9,
            color=LIGHT["ink"],
        )
    axes.set_yticks(range(len(dots)), [dot.label for dot in dots], color=LIGHT["ink"])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(dots) - 0.5, -0.7)
    axes.set_title(title)
    if not share:
        axes.margins(x=0.15)
        axes.locator_params(axis="x", nbins=5)
    else:
        axes.set_xlim(-3, 103)
        axes.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50 %", "75", "100"])


def held_out_dots(report: Report) -> list[Dot]:
    """What is known of the held-out pairs: both models and the length rule."""
    dots = []
    rm, dpo = report.reward_model, report.dpo
    if rm is not None and rm.held_out_accuracy is not None:
        dots.append(Dot("reward model", rm.held_out_accuracy, "rm"))
    if dpo is not None and dpo.held_out_accuracy is not None:
        dots.append(Dot("DPO", dpo.held_out_accuracy, "dpo"))
    longer = next((s.longer_wins for s in (rm, dpo) if s is not None and s.longer_wins), None)
    if longer is not None:
        dots.append(Dot("longer answer wins", longer, "base"))
    return dots


def loss_curves(report: Report) -> dict[str, Curve]:
    """Name of the figure -> curve, for the trainings that the report holds."""
    curves = {}
    if report.reward_model is not None and report.reward_model.losses:
        curves["rm_loss"] = Curve("Reward model", report.reward_model.losses, "rm")
    if report.dpo is not None and report.dpo.losses:
        curves["dpo_loss"] = Curve("DPO", report.dpo.losses, "dpo")
    return curves


def figures(report: Report) -> dict[str, str]:
    """Name -> inline SVG, for as much as the report knows: rm_loss, dpo_loss, held_out."""
    drawn = {
        name: svg(
            partial(draw_loss, curves=[curve], title=f"{curve.label}: training loss"),
            name=name,
            label=f"{curve.label}: training loss over {len(curve.losses)} steps",
            size=(4.6, 2.9),
        )
        for name, curve in loss_curves(report).items()
    }
    dots = held_out_dots(report)
    if dots:
        drawn["held_out"] = svg(
            partial(
                draw_dots, dots=dots, line=0.5, title="Held-out pairs ordered as the judge does"
            ),
            name="held_out",
            label="Held-out pair accuracy with intervals",
            size=(4.6, 0.9 + 0.5 * len(dots)),
        )
    return drawn


def draw_summary(report: Report, path_png: Path) -> None:
    """Write the main figure as PNG: losses, held-out accuracy, DPO policy against its start.

    Panels that the run has no figures for are left out. Raises ValueError if none is left.
    """
    columns: list[list[Callable[[Any], None]]] = [[], [], []]
    curves = list(loss_curves(report).values())
    if curves:
        columns[0].append(partial(draw_loss, curves=curves, title="Training loss"))
    dots = held_out_dots(report)
    if dots:
        title = "Held-out pairs ordered as judged"
        columns[1].append(partial(draw_dots, dots=dots, line=0.5, title=title))
    comparison = report.comparison
    if comparison is not None and comparison.win_rate is not None:
        wins = [Dot("", comparison.win_rate, "dpo")]
        title = "DPO policy wins against the start"
        columns[2].append(partial(draw_dots, dots=wins, line=0.5, title=title))
    if comparison is not None and comparison.length_difference is not None:
        change = [Dot("", comparison.length_difference, "dpo")]
        title = f"DPO − start, {comparison.length_unit} an answer"
        columns[2].append(partial(draw_dots, dots=change, line=0.0, title=title, share=False))
    columns = [column for column in columns if column]
    if not columns:
        raise ValueError("the report holds nothing to draw yet")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4 * len(columns), 3.2), layout="constrained")
        grid = figure.add_gridspec(1, len(columns))
        for c, column in enumerate(columns):
            cell = grid[c].subgridspec(len(column), 1)
            for r, draw in enumerate(column):
                draw(figure.add_subplot(cell[r]))
        figure.savefig(path_png, format="png", dpi=160, metadata={"Software": None})


def draw_overoptimization(found: Overoptimization) -> str:
    """Gold (solid, with its interval) and proxy (dashed, both as changes since n = 1) against
    sqrt(KL), a colour a curve; an `<svg>` file."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        for curve, role in zip(found.curves, ("rm", "dpo", "ink", "muted"), strict=False):
            d_S = np.sqrt([point.kl for point in curve.points])
            start = curve.points[0]
            gold_S = np.array([point.gold.value for point in curve.points]) - start.gold.value
            proxy_S = np.array([point.proxy.value for point in curve.points]) - start.proxy.value
            color = LIGHT[role]
            axes.plot(d_S, gold_S, color=color, label=f"{curve.name}: gold", marker="o", ms=3)
            axes.plot(d_S, proxy_S, color=color, linestyle="--", linewidth=1)
            if start.gold.low is not None:
                low_S, high_S = (
                    np.array(ends, dtype=np.float64) - start.gold.value
                    for ends in zip(*((p.gold.low, p.gold.high) for p in curve.points), strict=True)
                )
                axes.fill_between(d_S, low_S, high_S, color=color, alpha=0.12, linewidth=0)
            if curve.fit.peak_d is not None:
                axes.axvline(curve.fit.peak_d.value, color=color, linestyle=":", linewidth=1)
        axes.set_xlabel("sqrt(KL) from the start policy, nats")
        axes.set_ylabel("change since n = 1 (dashed: the reward model's own)")
        axes.legend(frameon=False, fontsize=8)
        file = StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
