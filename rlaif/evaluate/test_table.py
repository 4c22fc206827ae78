"""What a constitution's own tests came to: the figures, a table for the terminal, JUnit XML."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rlaif.constitution import Case, Place
from rlaif.evaluate.wording import counted, duration

TITLE_WIDTH = 48
MARGIN = 0.1
"""A principle decides a test when its vote is further than this from 0.5."""
# What XML 1.0 cannot hold, and what would move a terminal's cursor.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]+")


class CaseResult(NamedTuple):
    """One test of a constitution, put to a judge."""

    title: str
    principle: str
    """Id, or `*` for the whole constitution."""
    kind: Literal["pair", "compliance"]
    outcome: Literal["pass", "fail", "unscored"]
    p: float | None
    """Probability of what the test expects; None if unscored."""
    reason: str
    """Why it did not pass; empty if it did."""
    seconds: float
    """Its share of the time that its group of tests took to ask; 0 where all answers were
    stored."""
    place: Place


class Contradiction(NamedTuple):
    """Two principles that name different winners on the file's own tests."""

    first: str
    second: str
    disagreed: int
    """Tests on which they name different winners."""
    both_decided: int
    """Tests on which both name one."""
    tests: tuple[str, ...]
    """Titles of those on which they disagree."""

    def __str__(self) -> str:
        return (
            f"{self.first!r} and {self.second!r} name different winners on {self.disagreed} of the "
            f"{counted(self.both_decided, 'test')} that both decide, such as {self.tests[0]!r}"
        )


@dataclass(frozen=True)
class CaseRun:
    """All results of one run of a constitution's tests, in the order of the file."""

    constitution: str
    judge: str
    results: tuple[CaseResult, ...]
    contradictions: tuple[Contradiction, ...]
    decided: int
    """Of the votes that contradictions are looked for in, those that name a winner;"""
    votes: int
    """of so many asked for."""
    calls_made: int
    calls_from_store: int
    seconds: float
    """Spent asking, for contradictions too; the start of a server is not in it."""

    def count(self, outcome: str) -> int:
        """How many tests ended so."""
        return sum(result.outcome == outcome for result in self.results)

    @property
    def failed(self) -> int:
        """Tests that did not pass, unscored ones among them."""
        return len(self.results) - self.count("pass")


def contradictions(
    cases: Sequence[Case], votes: Sequence[Mapping[str, float]], margin: float = MARGIN
) -> list[Contradiction]:
    """Pairs of principles that disagree on at least half of the tests that both decide, and on more
    than one if they both decide more than one. The clearest first.

    `votes` are P(chosen preferred) by principle, for each test.
    """
    decided = decided_by(votes, margin)
    ids = list(dict.fromkeys(i for of in votes for i in of))
    found = []
    for first, second in itertools.combinations(ids, 2):
        both = [i for i, of in enumerate(decided) if first in of and second in of]
        apart = [i for i in both if decided[i][first] != decided[i][second]]
        if apart and 2 * len(apart) >= len(both) and len(apart) >= min(2, len(both)):
            titles = tuple(cases[i].title for i in apart)
            found.append(Contradiction(first, second, len(apart), len(both), titles))
    return sorted(found, key=lambda c: (-c.disagreed / c.both_decided, -c.disagreed))


def decided_by(
    votes: Sequence[Mapping[str, float]], margin: float = MARGIN
) -> list[dict[str, bool]]:
    """Of each test the principles that name a winner, and whether it is the right one."""
    return [{i: p > 0.5 for i, p in of.items() if abs(p - 0.5) > margin} for of in votes]


def table(run: CaseRun) -> str:
    """One line a test, then why the others did not pass and where they stand, then the totals."""
    named = max([len("principle"), *(len(result.principle) for result in run.results)])
    lines = [f"{'':<9}{'principle':<{named}}  {'test':<{TITLE_WIDTH}}{'p':>6}{'time':>8}"]
    for result in run.results:
        p = "" if result.p is None else f"{result.p:.2f}"
        title = _clean(result.title)
        title = title if len(title) <= TITLE_WIDTH else f"{title[: TITLE_WIDTH - 1]}…"
        lines.append(
            f"{result.outcome:<9}{result.principle:<{named}}  {title:<{TITLE_WIDTH}}{p:>6}"
            f"{duration(result.seconds):>8}"
        )
    missed = [result for result in run.results if result.outcome != "pass"]
    lines += [
        f"{_shown(result.place)}: {result.outcome}: {_clean(result.title)}: {result.reason}"
        for result in missed
    ]
    lines.append(_totals(run))
    return "\n".join(lines)


def _totals(run: CaseRun) -> str:
    said = ", ".join(f"{run.count(of)} {of}" for of in ("pass", "fail", "unscored"))
    return (
        f"{counted(len(run.results), 'test')} of {run.constitution} on {run.judge}: {said}; "
        f"{counted(run.calls_made, 'call')}, {run.calls_from_store:,} from the store, "
        f"{duration(run.seconds)}"
    )


def junit_xml(run: CaseRun) -> str:
    """JUnit XML, a suite for each principle: a failed test as `failure`, an unscored one as
    `error`."""
    by_principle: dict[str, list[CaseResult]] = {}
    for result in run.results:
        by_principle.setdefault(result.principle, []).append(result)
    root = ET.Element("testsuites", {"name": run.constitution, **_counts(run.results)})
    for principle, results in by_principle.items():
        suite = ET.SubElement(root, "testsuite", {"name": principle, **_counts(results)})
        for result in results:
            _add_case(suite, f"{run.constitution}.{principle}", result)
    ET.indent(root)
    xml: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return xml.decode() + "\n"


def _counts(results: Sequence[CaseResult]) -> dict[str, str]:
    outcomes = [result.outcome for result in results]
    return {
        "tests": str(len(results)),
        "failures": str(outcomes.count("fail")),
        "errors": str(outcomes.count("unscored")),
        "time": f"{sum(result.seconds for result in results):.3f}",
    }


def _add_case(suite: ET.Element, classname: str, result: CaseResult) -> None:
    case = ET.SubElement(
        suite,
        "testcase",
        {
            "classname": classname,
            "name": _clean(result.title),
            "time": f"{result.seconds:.3f}",
        },
    )
    if result.outcome == "pass":
        return
    tag = "failure" if result.outcome == "fail" else "error"
    reason = _clean(result.reason)
    problem = ET.SubElement(case, tag, {"message": reason, "type": result.outcome})
    p = "none" if result.p is None else f"{result.p:.3f}"
    problem.text = f"{_clean(_shown(result.place))}: {reason} (probability of what is right: {p})"


def _shown(place: Place) -> str:
    return str(place.file) if place.line is None else f"{place.file}:{place.line}"


def _clean(text: str) -> str:
    return CONTROL.sub(" ", text)
