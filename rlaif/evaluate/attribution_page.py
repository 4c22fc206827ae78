"""Writes an attribution: as JSON for programs, as HTML for people."""

from __future__ import annotations

import json
from pathlib import Path

from rlaif.evaluate.attribution import Attribution
from rlaif.evaluate.attribution_words import RULES, findings_of, sentences
from rlaif.evaluate.page import render
from rlaif.files import write_text


def write_attribution(found: Attribution, directory: Path) -> Path:
    """Writes attribution.json and attribution.html; returns the page. Without matplotlib the page
    has the figures as a table only, and says so. Raises SetupError where a file cannot be
    written."""
    data = json.dumps(
        found.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False
    )
    write_text(directory / "attribution.json", data + "\n")
    path = directory / "attribution.html"
    write_text(path, render_attribution(found))
    return path


def render_attribution(found: Attribution) -> str:
    """The attribution as one HTML page: no script, nothing loaded, every text escaped."""
    return render(
        "attribution.html.j2",
        found=found,
        sentences=sentences(found),
        stand_out=findings_of(found),
        rules=list(RULES.values()),
        figures=_figures(found),
    )


def _figures(found: Attribution) -> dict[str, str] | None:
    """None: matplotlib is not installed."""
    try:
        from rlaif.evaluate import attribution_plots
    except ModuleNotFoundError:
        return None
    return attribution_plots.figures(found)
