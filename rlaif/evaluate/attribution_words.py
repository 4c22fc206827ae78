"""An attribution in words: what it found, by which rules, and what a smaller constitution loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlaif.evaluate.attribution import (
    ABOVE,
    ALIKE,
    ALIKE_SURELY,
    FOLLOWED,
    STANDARD_ERRORS,
    UNMOVED,
    Attribution,
    Finding,
    Kind,
    PrincipleAttribution,
    Smaller,
)
from rlaif.evaluate.wording import counted, number, percent, reasons, share

RULES: Mapping[Kind, str] = {
    "dominating": (
        f"Dominating: agrees with {percent(FOLLOWED)} or more of the labels where it decides, and "
        f"the lower end of its flip rate is above {ABOVE:g} times what any other's may be."
    ),
    "redundant": (
        f"Redundant: its votes correlate with another's at {ALIKE:g} or more (lower end "
        f"above {ALIKE_SURELY:g}), and at most {percent(UNMOVED)} of the labels change when "
        "it goes, or when it goes and the other takes over its weight."
    ),
    "contrarian": (
        "Contrarian: its votes correlate negatively with what the others make without it, more "
        f"than {STANDARD_ERRORS:g} standard errors below zero."
    ),
    "dead": "Dead: no label changes without it, whether or not the redundant ones are still there.",
}
"""The rules of `attribution_findings`, for readers."""


def sentences(found: Attribution) -> list[str]:
    """The attribution in plain sentences, for the terminal and the head of the page."""
    labels = found.labels
    by_flips = sorted(found.principles, key=lambda p: -p.flip_rate.value)
    idle = [p.id for p in found.principles if not (p.flips or p.open)]
    return [
        f"{counted(labels.requested, 'comparison')} on {counted(found.prompts, 'prompt')} under "
        f"{counted(len(found.principles), 'principle')} of {found.constitution.id}; "
        f"{labels.a + labels.b:,} got a winner. Counted again from the stored votes; no model was "
        "asked.",
        *(
            ["The judge is a script, so this tells nothing of the principles."]
            if all(judge.startswith("fake/") for judge in found.judges)
            else []
        ),
        *(_flips(p) for p in by_flips if p.flips or p.open),
        *([_idle(idle)] if idle else []),
        *_people(found),
        *findings_of(found),
        *_smaller(found),
    ]


def _idle(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"No label changes without {names[0]}."
    return f"No label changes when one of these goes: {_listed(names)}."


def _flips(p: PrincipleAttribution) -> str:
    kinds = f" ({reasons(p.flips).replace('->', ' → ')})" if p.flips else ""
    unasked = (
        f" Of {percent(p.open / p.flip_rate.n)} more nobody can say: what would decide instead was "
        "never asked."
        if p.open
        else ""
    )
    return f"{p.id}: {share(p.flip_rate)} of labels change without it{kinds}.{unasked}"


def _people(found: Attribution) -> list[str]:
    said = []
    for source, of in found.human.items():
        if of.total is None:
            said.append(f"{source}: no label on {counted(of.pairs, 'pair')} that people decided.")
            continue
        each = ", ".join(
            f"{p.id} {share(p.human[source], 0.5)}" for p in found.principles if source in p.human
        )
        said.append(
            f"With people ({source}, {counted(of.pairs, 'pair')}) all principles together agree on "
            f"{share(of.total, 0.5)}; alone: {each}."
        )
    return said


def findings_of(found: Attribution) -> list[str]:
    """A sentence for each principle that stands out."""
    if found.too_few:
        return [f"Too few to tell which principles stand out: {found.too_few}."]
    if not found.findings:
        return ["No principle is dominating, redundant, contrarian or dead."]
    of = {p.id: p for p in found.principles}
    together = {frozenset((t.one, t.other)): t for t in found.together}
    said = []
    for finding in found.findings:
        p = of[finding.principle]
        match finding.kind:
            case "dominating":
                said.append(_dominating(p))
            case "redundant":
                r = together[frozenset((p.id, finding.other))].correlation
                said.append(_redundant(finding, "" if r is None else number(r.value)))
            case "contrarian":
                assert p.correlation_with_others is not None, "it is what makes a contrarian"
                said.append(
                    f"{p.id} is contrarian: its votes correlate at "
                    f"{number(p.correlation_with_others.value)} with what the others make."
                )
            case "dead":
                said.append(f"{p.id} is dead: {_why_dead(p)}.")
    return said


def _dominating(p: PrincipleAttribution) -> str:
    assert p.agrees_with_total is not None, "it is what makes it dominate"
    return (
        f"{p.id} dominates: the label follows it on {share(p.agrees_with_total)} of the pairs on "
        f"which both name a winner, and {share(p.flip_rate)} of labels hang on it."
    )


def _redundant(finding: Finding, r: str) -> str:
    assert finding.changed is not None, "it is what makes it redundant"
    heir = f" and {finding.other} takes over its weight" if finding.takes_weight else ""
    return (
        f"{finding.principle} is redundant: it votes as {finding.other} does (correlation {r}), "
        f"and without it{heir} {share(finding.changed)} of labels change."
    )


def _why_dead(p: PrincipleAttribution) -> str:
    if not p.weight:
        return "its weight is 0, so no label depends on it"
    if not p.applicable:
        return "it applies to none of the prompts"
    if not p.asked:
        return "the judge was never asked under it"
    if not p.votes:
        return "it never got a vote"
    if not p.decides:
        return "it is always level"
    return "the others make every label the same without it"


def _smaller(found: Attribution) -> list[str]:
    if found.too_few:
        return []
    if found.smaller is None:
        return [
            f"No smaller constitution keeps all but {percent(UNMOVED)} of the labels: each "
            "principle that goes changes more."
        ]
    return [_suggested(found.smaller)]


def _suggested(of: Smaller) -> str:
    saved = (
        "" if of.tokens_saved is None else f", and {percent(of.tokens_saved)} of tokens are saved"
    )
    kinds = reasons(of.changes).replace("->", " → ")
    return (
        f"Without {_listed(of.dropped)} {share(of.changed)} of labels change"
        f"{f' ({kinds})' if kinds else ''}{saved}: suggested.yaml keeps {_listed(of.kept)}."
    )


def _listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
