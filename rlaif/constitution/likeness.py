"""Principles that say the same in nearly the same words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from rlaif.constitution.model import WORDINGS, Principle, derived

ALIKE = 0.6
"""Two rules whose telling words overlap by this share (Jaccard) say nearly the same. Unlike rules
of one constitution share a quarter at most."""
FRAME_OF = 6
"""From so many principles on, a word that more than half of them use tells nothing of one."""
# Words of which rules are built whatever they are about.
COMMON = frozenset(
    word
    for line in (
        "a an and any are as assistant assistants at be better but by can choose do does else",
        "for from has have if in into is it its just less make may more most must no nor not of",
        "on one only or other prefer provide reply response responses rewrite should so some",
        "such than that the their them then there they this those to was what when where which",
        "who will with without would you your",
    )
    for word in line.split()
)

Level = Literal["error", "warning"]


def likeness(one: Principle, other: Principle, frame: frozenset[str]) -> tuple[Level, str] | None:
    """How one principle is like another, and how grave that is; None: it is not. `frame` are words
    that tell nothing (see `frame_of`)."""
    if _words(one.text) == _words(other.text) != []:
        if all(_words(dict(one)[field]) == _words(dict(other)[field]) for field in WORDINGS):
            return "error", "says the same as"
        return "warning", "has the same text as"
    if _overlap(one.text, other.text, frame) >= ALIKE:
        return "warning", "says nearly the same as"
    if _quotes_text(one) or _quotes_text(other):
        return None
    asks = (one.comparison, other.comparison)
    if _words(asks[0]) == _words(asks[1]) or _overlap(*asks, frame) >= ALIKE:
        return "warning", "asks the judge nearly the same question as"
    return None


def _quotes_text(principle: Principle) -> bool:
    """Whether the question for judges is the text in a frame, and has been compared with it."""
    own = principle.comparison
    return own == derived(principle.text)["comparison"] or bool(re.search(r"\{\{\s*text\b", own))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _telling(text: str, frame: frozenset[str]) -> set[str]:
    """The words that a rule is about, without their plural."""
    return {w.rstrip("s") or w for w in _words(text) if w not in COMMON} - frame


def _overlap(one: str, other: str, frame: frozenset[str]) -> float:
    a, b = _telling(one, frame), _telling(other, frame)
    if not (a or b):
        # Rules that are all frame differ in nothing else.
        a, b = _telling(one, frozenset()), _telling(other, frozenset())
    return len(a & b) / len(a | b) if a & b else 0.0


def frame_of(principles: Sequence[Principle]) -> frozenset[str]:
    """Words that more than half of many rules use ("everyone has the right to …")."""
    if len(principles) < FRAME_OF:
        return frozenset()
    uses = Counter(w for p in principles for w in _telling(p.text, frozenset()))
    return frozenset(w for w, n in uses.items() if 2 * n > len(principles))
