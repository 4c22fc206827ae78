"""From a judge's answer to a probability, or to a reason for having none."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from rlaif.types import Choice, TokenLogprob

Labels = tuple[str, str]
BRACKETED = re.compile(r"\[\[\s*([^\[\]]{1,20}?)\s*\]\]")
STATED = re.compile(
    r"\b(?:verdict|answer|choice|better(?: response)?|winner)\b(?: is|:|=)*\s*[\"'*_(\[]*"
    r"(?:response |option )?([A-Za-z]+)\b",
    re.IGNORECASE,
)
PUNCTUATION = " \t\r\n.,:;!\"'`*_()[]{}"


class Verdict(NamedTuple):
    """P(the first label), or None with a reason."""

    p_first_label: float | None
    label_mass: float | None
    """Probability that both labels held together; None for verdicts read from text."""
    reason: str


def read_verdict(choice: Choice, labels: Labels, min_label_mass: float) -> Verdict:
    """Log-probabilities where the server gave them, the text otherwise."""
    if choice.first_token:
        return read_logprobs(choice.first_token, labels, min_label_mass)
    return read_text(choice, labels)


def read_logprobs(
    alternatives: tuple[TokenLogprob, ...], labels: Labels, min_label_mass: float
) -> Verdict:
    """The labels' probabilities, renormalised over the two.

    Spellings that differ in surrounding space, and for words in case, count together (" A" and
    "A" are different tokens). A label that is not among the alternatives counts as zero: the
    server returned the likeliest, so what is missing is smaller than all of them.
    """
    mass = [0.0, 0.0]
    for alternative in alternatives:
        for i, label in enumerate(labels):
            if _same(alternative.token.strip(), label):
                mass[i] += math.exp(alternative.logprob)
    # Rounding in the server can bring a sum of probabilities a hair over one.
    total = min(1.0, mass[0] + mass[1])
    if total < min_label_mass or total == 0.0:
        return Verdict(None, total, "label_mass_below_floor")
    return Verdict(mass[0] / (mass[0] + mass[1]), total, "")


def read_text(choice: Choice, labels: Labels) -> Verdict:
    """The last verdict that the text states; it must be on the menu.

    In this order: the last `[[X]]`; a last line that is a label and nothing else; the last
    "verdict/answer/choice/winner … X". Anything else is unscored: a label somewhere in the prose,
    or inside a quotation of the response, is not a verdict.
    """
    text = choice.text.strip()
    if not text:
        return Verdict(None, None, "empty")
    stated = BRACKETED.findall(text) or [
        line.strip(PUNCTUATION)
        for line in text.splitlines()[-1:]
        if any(_same(line.strip(PUNCTUATION), label) for label in labels)
    ]
    if not stated:
        # A statement inside quotation marks is someone else's.
        stated = STATED.findall(re.sub(r"\"[^\"\n]*\"|“[^”\n]*”|`[^`\n]*`", "", text))
    if not stated:
        return Verdict(
            None, None, "truncated" if choice.finish_reason == "length" else "unreadable"
        )
    for p_first_label, label in zip((1.0, 0.0), labels, strict=True):
        if _same(stated[-1], label):
            return Verdict(p_first_label, None, "")
    return Verdict(None, None, "off_the_menu")


def _same(found: str, label: str) -> bool:
    # One-letter labels are exact: "a" is the article that opens many a sentence.
    return found == label if len(label) == 1 else found.casefold() == label.casefold()
