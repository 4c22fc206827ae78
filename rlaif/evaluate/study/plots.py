"""The plots of a study, with the numbers that each is made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from io import BytesIO
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from rlaif.arms import curve_arms
from rlaif.evaluate.exchange_rate import ExchangeRates, LearningCurve
from rlaif.evaluate.intervals import Interval
from rlaif.evaluate.plots import LIGHT, LN2, STYLE, Dot, draw_dots, svg
from rlaif.evaluate.study.arm_records import KINDS
from rlaif.evaluate.study.records import Run, StudyReport
from rlaif.evaluate.study.words import MODELS

ROLE = {"reward_model": "rm", "dpo": "dpo"}
INTERVAL = ("value", "low", "high", "n", "prompts")


class Look(NamedTuple):
    """How an arm is drawn: told apart by line and marker where there is no colour."""

    role: str
    line: Any
    marker: str


LOOKS = {
    "human": Look("rm", "-", "o"),
    "ai_soft": Look("dpo", "--", "s"),
    "ai_hard": Look("dpo", "-.", "^"),
    "mixed": Look("base", (0, (1, 1)), "D"),
    "noise_matched": Look("rm", (0, (5, 1, 1, 1, 1, 1)), "v"),
}
NEAR = 0.06
"""Sizes nearer to each other than this share of the axis have one tick."""
Format = Literal["svg", "pdf"]
UNSAID: dict[Format, tuple[str, ...]] = {
    "svg": ("Date", "Creator"),
    "pdf": ("CreationDate", "Creator", "Producer"),
}
"""What would say when and by what version a plot was drawn."""
Cell = str | float | int | None


class Plot(NamedTuple):
    """One plot."""

    name: str
    title: str
    size: tuple[float, float]
    """Inches."""
    draw: Callable[[Any], None]
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    """Its numbers."""

    def inline(self) -> str:
        """As `plots.svg`."""
        return svg(self.draw, name=self.name, label=self.title, size=self.size)

    def file(self, kind: Format) -> bytes:
        """As a file of its own; the same plot gives the same bytes."""
        file = BytesIO()
        with mpl.rc_context({**STYLE, "pdf.fonttype": 42}):
            figure = Figure(figsize=self.size, layout="constrained", facecolor="white")
            self.draw(figure.subplots())
            figure.savefig(file, format=kind, metadata=dict.fromkeys(UNSAID[kind]))
        return file.getvalue()


def plots(report: StudyReport) -> Iterator[Plot]:
    """All of a study."""
    yield _agreement(report)
    yield _accuracy(report)
    yield _win_rates(report)
    if report.curve is not None:
        yield _curve(report.curve, curve_arms(report.arms))
    for kind in KINDS:
        yield _losses(kind, [t for t in report.training.runs if t.kind == kind and t.share == 1])


def _agreement(report: StudyReport) -> Plot:
    of = report.labels
    buckets = [("all pairs", of.every, "base")]
    buckets += [(f"judge {name} sure", a, "rm") for name, a in of.by_margin.items()]
    buckets += [(f"chosen: {name}", a, "dpo") for name, a in of.by_length.items()]
    found = [(name, a.accuracy, role) for name, a, role in buckets if a.accuracy is not None]
    return _dots("agreement", "The judge's winner is people's", found)


def _accuracy(report: StudyReport) -> Plot:
    found = [(f"{MODELS[a.kind]}, {a.arm}", a.on_human, ROLE[a.kind]) for a in report.accuracies]
    found.append(("longer answer wins", report.held_out.longer_human, "base"))
    return _dots("accuracy", "Held-out pairs ordered as people do", found)


def _win_rates(report: StudyReport) -> Plot:
    found = []
    for second, rates in (("start", report.against_start), ("human", report.against_human)):
        for arm, rate in rates.items():
            found.append((f"{arm} – {second}", rate.rate, "dpo"))
            if rate.corrected.corrected is not None:
                found.append((f"{arm} – {second}, equal length", rate.corrected.corrected, "base"))
    return _dots("win_rates", "Wins of the policies, by their judge", found)


def _dots(name: str, title: str, found: Sequence[tuple[str, Interval, str]]) -> Plot:
    dots = [Dot(label, interval, role) for label, interval, role in found]
    return Plot(
        name,
        title,
        (6.4, 0.9 + 0.3 * len(dots)),
        partial(draw_dots, dots=dots, line=0.5, title=title),
        ("label", *INTERVAL),
        [(label, i.value, i.low, i.high, i.n, i.clusters) for label, i, _ in found],
    )


def _curve(found: ExchangeRates, names: tuple[str, str]) -> Plot:
    arms = dict(zip(names, (found.human, found.ai), strict=True))
    title = "Held-out accuracy by training pairs"

    def draw(axes: Any) -> None:
        for k, (arm, curve) in enumerate(arms.items()):
            look = LOOKS[arm]
            color = LIGHT[look.role]
            n_S = np.geomspace(curve.pairs[0], curve.pairs[-1], 60)
            axes.plot(n_S, _at(curve, n_S), color=color, linestyle=look.line, linewidth=1.5)
            # Beside each other, so that no interval hides another.
            beside = 1.0 + (0.02 if k else -0.02) * np.log(curve.pairs[-1] / curve.pairs[0])
            value_S, low_S, high_S = (
                100.0 * np.array(of, dtype=np.float64)
                for of in zip(*((a.value, a.low, a.high) for a in curve.accuracies), strict=True)
            )
            axes.errorbar(
                beside * np.array(curve.pairs),
                value_S,
                yerr=[value_S - low_S, high_S - value_S],
                fmt=look.marker,
                color=color,
                markersize=5.5,
                elinewidth=1.2,
                capsize=2.5,
            )
            axes.plot([], [], color=color, linestyle=look.line, marker=look.marker, label=arm)
        _finish(axes, title, "training pairs (lines: a − b n^−c)", "% ordered as people do")
        axes.set_xscale("log")
        sizes = _apart({n for curve in arms.values() for n in curve.pairs})
        axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
        axes.minorticks_off()

    rows = [
        (
            arm,
            n,
            accuracy.value,
            accuracy.low,
            accuracy.high,
            accuracy.n,
            accuracy.clusters,
            float(_at(curve, np.array(float(n)))) / 100.0,
        )
        for arm, curve in arms.items()
        for n, accuracy in zip(curve.pairs, curve.accuracies, strict=True)
    ]
    head = ("arm", "pairs", *INTERVAL, "fit")
    return Plot("learning_curve", title, (6.4, 3.6), draw, head, rows)


def _apart(sizes: Collection[int]) -> list[int]:
    """The sizes, largest first, without those too near to one that is kept."""
    least = NEAR * np.log(max(sizes) / min(sizes))
    kept: list[int] = []
    for n in sorted(sizes, reverse=True):
        if not kept or np.log(kept[-1] / n) >= least:
            kept.append(n)
    return kept


def _at(curve: LearningCurve, n: np.ndarray) -> np.ndarray:
    return np.asarray(100.0 * (curve.a - curve.b * n**-curve.c))


def _losses(kind: str, runs: Sequence[Run]) -> Plot:
    title = f"{MODELS[kind][0].upper()}{MODELS[kind][1:]}: training loss, mean of the seeds"
    arms = list(dict.fromkeys(t.arm for t in runs))

    def draw(axes: Any) -> None:
        axes.axhline(LN2, color=LIGHT["muted"], linewidth=0.8, label="ln 2")
        for k, arm in enumerate(arms):
            of = [t.losses for t in runs if t.arm == arm]
            steps = min(map(len, of))
            mean_S = np.mean([losses[:steps] for losses in of], axis=0)
            window = max(1, steps // 10)
            smooth_S = np.convolve(mean_S, np.ones(window))[:steps]
            smooth_S /= np.minimum(np.arange(1, steps + 1), window)
            look = LOOKS[arm]
            # Six markers a line, at other steps than those of the other arms.
            every = max(1, steps // 6)
            axes.plot(
                np.arange(1, steps + 1),
                smooth_S,
                color=LIGHT[look.role],
                linestyle=look.line,
                marker=look.marker,
                markevery=(k * every // len(arms), every),
                markersize=4.5,
                linewidth=1.4,
                label=arm,
            )
        _finish(axes, title, "optimiser step", "nats a comparison")
        axes.xaxis.get_major_locator().set_params(integer=True)

    rows = [(t.arm, t.seed, i, loss) for t in runs for i, loss in enumerate(t.losses, 1)]
    return Plot(f"{kind}_loss", title, (6.4, 3.4), draw, ("arm", "seed", "step", "loss"), rows)


def _finish(axes: Any, title: str, x: str, y: str) -> None:
    axes.grid(axis="y", color=LIGHT["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    # Beside the axes: in them it would lie on a line of some study.
    axes.legend(
        frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1.0), handlelength=3.2
    )
