"""A study in short: what its report begins with, and what the terminal is told."""

from __future__ import annotations

from typing import NamedTuple

from rlaif.arms import START, curve_arms
from rlaif.evaluate.comparison_words import points, rate_words
from rlaif.evaluate.study.arm_records import Difference
from rlaif.evaluate.study.document import NONE, Section, Table, amount_cell, share_cell
from rlaif.evaluate.study.family import comparisons
from rlaif.evaluate.study.records import StudyReport
from rlaif.evaluate.study.words import agreement_words, alarms, verdict_words, warnings
from rlaif.evaluate.wording import counted, p_text, percent

LINES = 10
"""Of alarms, warnings and main sentences together."""
PRIMARY = "†"


class Summary(NamedTuple):
    """The beginning of a report, at most `LINES` lines."""

    alarms: list[str]
    warnings: list[str]
    sentences: list[str]
    more: list[str]
    """Warnings for which there was no room."""


def summary(report: StudyReport) -> Summary:
    """What is said first."""
    alarmed, warned, said = alarms(report), warnings(report), headline_words(report)
    room = LINES - len(alarmed) - len(said)
    if len(warned) <= room:
        return Summary(alarmed, warned, said, [])
    shown, more = warned[: room - 1], warned[room - 1 :]
    shown.append(f"{counted(len(more), 'more warning')} under the table.")
    return Summary(alarmed, shown, said, more)


def headline(report: StudyReport) -> list[str]:
    """For the terminal: all warnings, then the main sentences."""
    warned = [f"warning: {warning}" for warning in (*alarms(report), *warnings(report))]
    return warned + headline_words(report)


def headline_words(report: StudyReport) -> list[str]:
    """The main sentences: of the labels, of the primary comparisons, and of the exchange rate."""
    said = agreement_words(report)[:1] + [
        _primary(d, report) for d in comparisons(report) if d.primary
    ]
    if report.curve is not None:
        said.append(rate_words(report.curve.rates[-1], curve_arms(report.arms)[1]))
    return said


def _primary(found: Difference, report: StudyReport) -> str:
    if found.b == "one half":
        arm = curve_arms(report.arms)[1]
        rate = share_cell(report.against_human[arm].rate)
        figure = f"{arm} wins {rate} against human by {report.compared_by}"
    else:
        figure = f"{found.a} − {found.b}, {found.measure}: {points(found.interval)}"
    p = "" if found.p_holm is None else f" (p by Holm {p_text(found.p_holm)})"
    return f"{PRIMARY} {figure}: {verdict_words(found)}{p}."


def main_table(report: StudyReport) -> Section:
    """The main figures of every arm."""
    accuracy = {(a.kind, a.arm): share_cell(a.on_human) for a in report.accuracies}
    rates = {arm: share_cell(rate.rate) for arm, rate in report.against_human.items()}
    ai = curve_arms(report.arms)[1]
    rows = []
    for p in report.policies:
        mark = f" {PRIMARY}" if p.arm == ai else ""
        trained = p.arm != START
        rows.append(
            (
                p.arm,
                accuracy["reward_model", p.arm] + mark if trained else "–",
                accuracy["dpo", p.arm] if trained else "–",
                "–" if p.arm in (START, "human") else rates.get(p.arm, NONE) + mark,
                amount_cell(p.kl) if trained else "–",
                amount_cell(p.characters),
                share_cell(p.refuses_harmless),
            )
        )
    alike = f"{100 * report.margin:g} points"
    return Section(
        "Main figures",
        tables=[
            Table(
                "",
                (
                    "",
                    "reward model, by people's labels",
                    "DPO's implicit reward, by people's labels",
                    "policy wins against human",
                    "KL from the start, nats",
                    "characters an answer",
                    "refuses harmless",
                ),
                rows,
            )
        ],
        note=f"Accuracies are of the same {counted(report.held_out.pairs, 'held-out pair')}. "
        f"Square brackets hold {percent(0.95)} intervals over prompts and, where models were "
        f"trained, over seeds. {PRIMARY}: a primary comparison ({ai} against human), chosen before "
        "the figures. p by Holm is of the primary ones, or of all other comparisons of arms. "
        f"Alike: within {alike} by two one-sided tests. Different: p by Holm at most 0.05; "
        "different by itself: only without Holm. Not shown: neither.",
    )
