"""From a judge's answer to a probability, or to a reason for having none."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from rlaif.types import Choice, TokenLogprob

Labels = tuple[str, str]
BRACKETED = re.compile(r"\[\[\s*([^\[\]]{1,20}?)\s*\]\]")
NOUN = r"(?:response|output|option|answer|candidate)"
WORD = r"[\"'*_({\[]*(\w+)\b[\"'*_)}\]]*"
# "The verdict is B", "Better response: [B]"
NAMED = rf"\b(?:verdict|answer|choice|winner|better(?: {NOUN})?)(?: is|:|=)+\s*(?:{NOUN} )?{WORD}"
# "Response B is better", "Output (b) is the clear winner". Only words that strengthen may stand
# between: any word would let "is not better" and "is no better" through.
STRONGER = r"(?:the|a|clearly|clear|much|far|slightly|overall|somewhat|more)"
PRAISED = (
    rf"\b{NOUN} {WORD} (?:wins\b|is (?:{STRONGER} ){{0,2}}(?:better|preferable|preferred|winner)\b)"
)
# "The answer is A, worse than B": what follows the label turns it round.
TURNED = re.compile(r"\s*\?|[^.;!?\n]*\b(?:not|no|never|hardly|worse|less|than)\b", re.IGNORECASE)
STATED = re.compile(f"{NAMED}|{PRAISED}", re.IGNORECASE)
# "I do not think that response B is better", "whether the answer is B" state nothing.
DENIED = re.compile(
    r"(?:\b(?:not|never|neither|nor|if|whether)|n['’]t)\b[^.,:;!?]*$", re.IGNORECASE
)
ALONE = re.compile(rf"(?:{NOUN}\s+)?[\W_]*(\w+)", re.IGNORECASE)
PUNCTUATION = " \t\r\n.,:;!\"'`*_()[]{}"
# A statement inside quotation marks is someone else's.
QUOTED = re.compile(r"\"[^\"\n]*\"|“[^”\n]*”|`[^`\n]*`")


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

    In this order: the last `[[X]]`; a last line that is a label and nothing else ("B", "Response
    B."); the last "verdict/answer/choice/winner is X" or "response X is better"; a first line that
    is a label and nothing else, unless the other label has a line of its own too. Anything else is
    unscored: a label somewhere in the prose, or inside a quotation of the response, is not a
    verdict. A text that the token limit cut counts only if it ends in `[[X]]`: what it was about to
    say is unknown ("A" may be the first word of "A careful comparison shows B").
    """
    text = choice.text.strip()
    if not text:
        return Verdict(None, None, "empty")
    stated = BRACKETED.findall(text)
    if choice.finish_reason == "length" and not (stated and text.endswith("]]")):
        return Verdict(None, None, "truncated")
    if not stated:
        alone = [_alone(line, labels) for line in text.splitlines()]
        statements = _statements(text)
        if alone[-1]:
            stated = [alone[-1]]
        elif statements:
            stated = statements
        elif alone[0] and len(set(alone)) == 2:  # that label, and lines of prose
            stated = [alone[0]]
    if not stated:
        return Verdict(None, None, "unreadable")
    for p_first_label, label in zip((1.0, 0.0), labels, strict=True):
        if _same(stated[-1], label):
            return Verdict(p_first_label, None, "")
    return Verdict(None, None, "off_the_menu")


def _alone(line: str, labels: Labels) -> str:
    """The label that the line consists of; empty if it is anything else."""
    match = ALONE.fullmatch(line.strip(PUNCTUATION))
    return match[1] if match and any(_same(match[1], label) for label in labels) else ""


def _statements(text: str) -> list[str]:
    unquoted = QUOTED.sub("", text)
    return [
        match[1] or match[2]
        for match in STATED.finditer(unquoted)
        if not DENIED.search(unquoted, 0, match.start())
        and not (match[1] and TURNED.match(unquoted, match.end()))
    ]


def _same(found: str, label: str) -> bool:
    # One-letter labels are exact: "a" is the article that opens many a sentence.
    return found == label if len(label) == 1 else found.casefold() == label.casefold()
