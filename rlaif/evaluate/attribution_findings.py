"""Which principles stand out, and which could go: rules on the figures of `Attribution`.

The rules, with the constants of `attribution`:

dominating: it agrees with FOLLOWED or more of the labels with a winner, where it decides, and the
lower end of its flip rate lies above ABOVE times what the flip rate of any other may be.
redundant: its votes and another's correlate at ALIKE or more, the interval's lower end lies above
ALIKE_SURELY, and at most UNMOVED of the labels change without it, or without it and with its weight
given to the other. Of the two the one is named whose going changes fewer labels, then the later.
contrarian: its votes correlate with what the others make without it at more than STANDARD_ERRORS
standard errors below zero (the width of the interval is 2 * 1.96 of them).
dead: no label changes without it, be it from the whole constitution or from what the redundant ones
leave, it is not one of these, and it was asked about FEW_PAIRS comparisons or none.

A label of which nobody can say what it would be (`open`) counts as changed: nothing is called
needless for want of a question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from rlaif.evaluate.attribution import (
    ABOVE,
    ALIKE,
    ALIKE_SURELY,
    FEW_PAIRS,
    FOLLOWED,
    STANDARD_ERRORS,
    UNMOVED,
    Finding,
    PrincipleAttribution,
    Smaller,
    Together,
)
from rlaif.evaluate.intervals import Interval, clustered_share
from rlaif.judge.recount import Label, Tally

ENDS = 2 * 1.96
"""Standard errors between the ends of a 95 % interval."""


class Changes:
    """What other weights do to the labels."""

    def __init__(
        self,
        tally: Tally,
        weights: Mapping[str, float],
        labels: Sequence[Label],
        prompt_M: Sequence[str],
        seed: int,
    ) -> None:
        self._tally = tally
        self.weights = weights
        """Those of the run."""
        self._outcome_M = [label.outcome for label in labels]
        self._prompt_M = prompt_M
        self._seed = seed

    def outcomes(self, weights: Mapping[str, float]) -> list[str]:
        """What every label comes to, `open` included."""
        return [label.outcome for label in self._tally.labels(weights)]

    def kinds(self, weights: Mapping[str, float]) -> Counter[str]:
        """`A->tie` -> how many labels change so, or `A->open` may."""
        return Counter(
            f"{before}->{after}"
            for before, after in zip(self._outcome_M, self.outcomes(weights), strict=True)
            if before != after
        )

    def share(self, weights: Mapping[str, float]) -> Interval:
        """Share of labels that change."""
        after_M = self.outcomes(weights)
        changed_M = [a != b for a, b in zip(self._outcome_M, after_M, strict=True)]
        return clustered_share(changed_M, self._prompt_M, self._seed)

    def without(self, gone: str, heir: str = "") -> dict[str, float]:
        """The run's weights without a principle, which may leave its weight to another."""
        left = {i: w for i, w in self.weights.items() if i != gone}
        if heir:
            left[heir] += self.weights[gone]
        return left

    def few(self, changed: int) -> bool:
        """Whether so many labels are next to none."""
        return changed <= UNMOVED * len(self._outcome_M)


def findings(
    principles: Sequence[PrincipleAttribution],
    together: Sequence[Together],
    changes: Changes,
    one_tier: bool,
) -> tuple[Finding, ...]:
    """The principles that stand out, by the rules above. `one_tier`: tiers count for nothing."""
    tiers = {p.id: 1 if one_tier else p.tier for p in principles}
    redundant = _redundant(together, tiers, changes)
    return (
        *(Finding(kind="dominating", principle=i) for i in _dominating(principles)),
        *redundant,
        *(Finding(kind="contrarian", principle=p.id) for p in principles if _contrarian(p)),
        *(Finding(kind="dead", principle=i) for i in _dead(principles, redundant, changes)),
    )


def _dominating(principles: Sequence[PrincipleAttribution]) -> list[str]:
    found = []
    for p in principles:
        others = [
            other.flip_rate.value + other.open / other.flip_rate.n
            for other in principles
            if other.id != p.id
        ]
        agrees, low = p.agrees_with_total, p.flip_rate.low
        followed = agrees is not None and agrees.value >= FOLLOWED
        if others and followed and low is not None and low > ABOVE * max(others):
            found.append(p.id)
    return found


def _contrarian(principle: PrincipleAttribution) -> bool:
    r = principle.correlation_with_others
    if r is None or r.low is None or r.high is None:
        return False
    return r.value + STANDARD_ERRORS * (r.high - r.low) / ENDS < 0


def _redundant(
    together: Sequence[Together], tiers: Mapping[str, int], changes: Changes
) -> list[Finding]:
    found: dict[str, Finding] = {}
    for pair in together:
        r = pair.correlation
        if r is None or r.value < ALIKE or r.low is None or r.low <= ALIKE_SURELY:
            continue
        if pair.one in found or pair.other in found:
            continue
        if not (changes.weights[pair.one] and changes.weights[pair.other]):
            # What has no weight is dead, whatever it says.
            continue
        # The later first: of equals `min` takes the first.
        ways = [(pair.other, pair.one), (pair.one, pair.other)]
        for inherits in (False, True) if tiers[pair.one] == tiers[pair.other] else (False,):
            counts = {
                way: changes.kinds(changes.without(way[0], way[1] if inherits else "")).total()
                for way in ways
            }
            gone, heir = min(ways, key=lambda way: counts[way])
            if changes.few(counts[gone, heir]):
                found[gone] = Finding(
                    kind="redundant",
                    principle=gone,
                    other=heir,
                    takes_weight=inherits,
                    changed=changes.share(changes.without(gone, heir if inherits else "")),
                )
                break
    return list(found.values())


def _dead(
    principles: Sequence[PrincipleAttribution], redundant: Sequence[Finding], changes: Changes
) -> list[str]:
    left = dict(changes.weights)
    for found in redundant:
        weight = left.pop(found.principle)
        if found.takes_weight and found.other in left:
            left[found.other] += weight
    outcomes = changes.outcomes(left)

    def idle(principle: str) -> bool:
        after = changes.outcomes({i: w for i, w in left.items() if i != principle})
        return after == outcomes and "open" not in after

    # Asked a few times, it has had no chance.
    return [
        p.id
        for p in principles
        if not (p.flips or p.open)
        and p.id in left
        and (p.asked >= FEW_PAIRS or not p.asked or not p.weight)
        and idle(p.id)
    ]


def smaller(
    principles: Sequence[PrincipleAttribution], redundant: Collection[str], changes: Changes
) -> Smaller | None:
    """Principles dropped one after the other, always the one whose going changes fewest labels (of
    equals a `redundant` one, then the one that costs most, then the last), while no more than
    UNMOVED of the labels are others than the run's. Greedy: another choice of as many may change
    fewer."""
    tokens = {
        p.id: p.cost.prompt_tokens + p.cost.completion_tokens if p.cost else 0.0 for p in principles
    }
    order = {
        p.id: (p.id not in redundant, -tokens[p.id], -place) for place, p in enumerate(principles)
    }
    left, dropped = dict(changes.weights), list[str]()
    while True:
        counts = {}
        for i in left:
            rest = {k: w for k, w in left.items() if k != i}
            if any(rest.values()):
                counts[i] = changes.kinds(rest).total()
        best = min(counts, key=lambda i: (counts[i], order[i]), default=None)
        if best is None or not changes.few(counts[best]):
            break
        del left[best]
        dropped.append(best)
    if not dropped:
        return None
    spent = sum(tokens.values())
    return Smaller(
        dropped=tuple(dropped),
        kept=tuple(left),
        changed=changes.share(left),
        changes=dict(sorted(changes.kinds(left).items())),
        tokens_saved=min(sum(tokens[i] for i in dropped) / spent, 1.0) if spent else None,
    )
