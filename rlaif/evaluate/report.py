"""Writes a run's report: report.json and report.html."""

from __future__ import annotations

import json
from pathlib import Path

from rlaif.errors import SetupError
from rlaif.evaluate.headline import find_warnings, headline
from rlaif.evaluate.page import render
from rlaif.evaluate.schema import Report, StageCost
from rlaif.files import write_text

__all__ = ["draw_summary", "find_warnings", "headline", "render_html", "write_report"]

STAGES = (
    "revise",
    "train-sft",
    "sample",
    "certify",
    "judge",
    "pairs",
    "train-rm",
    "train-dpo",
    "train-rl",
    "compare",
)
"""The order that stages are shown in; any other follows by name."""


def write_report(report: Report, directory: Path) -> None:
    """Write `report.json` (keys sorted) and `report.html` (self-contained) into `directory`.

    Each file appears whole or not at all; the same report gives the same bytes. A report with
    training in it needs matplotlib. Raises SetupError where a file cannot be written or matplotlib
    is not installed.
    """
    data = json.dumps(report.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False)
    page = render_html(report)
    write_text(directory / "report.json", data + "\n")
    write_text(directory / "report.html", page)


def render_html(report: Report) -> str:
    """The report as one HTML page: no script, nothing loaded from elsewhere, every text escaped."""
    return render(
        "report.html.j2",
        report=report,
        sentences=headline(report),
        figures=_figures(report),
        stages=_in_order(report),
        total=_total(report),
    )


def draw_summary(report: Report, path_png: Path) -> None:
    """Write the run's main figure as PNG (see `plots.draw_summary`)."""
    from rlaif.evaluate import plots

    plots.draw_summary(report, path_png)


def _figures(report: Report) -> dict[str, str]:
    if report.reward_model is None and report.dpo is None:
        return {}  # labels alone are reported by the base install, which has no matplotlib
    try:
        from rlaif.evaluate import plots
    except ModuleNotFoundError as error:
        raise SetupError(
            f"the report of a trained model needs {error.name}", fix="pip install 'rlaif[train]'"
        ) from error
    return plots.figures(report)


def _in_order(report: Report) -> list[tuple[str, StageCost]]:
    known = [stage for stage in STAGES if stage in report.cost]
    return [
        (stage, report.cost[stage]) for stage in [*known, *sorted(set(report.cost) - set(known))]
    ]


def _total(report: Report) -> StageCost:
    costs = [cost.model_dump() for cost in report.cost.values()]
    return StageCost(
        **{
            # One price that is not known makes the sum unknown.
            key: None if any(cost[key] is None for cost in costs) else sum(c[key] for c in costs)
            for key in StageCost.model_fields
        }
    )
