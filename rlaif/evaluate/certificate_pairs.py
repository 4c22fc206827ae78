"""The gold pairs that a certificate asks about, and the verdicts on them as its rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlaif.constitution import Constitution
from rlaif.errors import SetupError
from rlaif.evaluate.certificate import ALL, InjectionFigures, InjectionRow, Row
from rlaif.evaluate.certificate_figures import injection_figures
from rlaif.files import digest
from rlaif.gold import GoldPair, GoldSet, load_gold, part_of
from rlaif.judge.aggregate import Pair
from rlaif.judge.config import Gate
from rlaif.judge.injections import CONTROLS, INJECTED, INJECTIONS, inject
from rlaif.judge.panel import Verdicts
from rlaif.types import Comparison, Judgment, Order, Response

Chosen = Sequence[tuple[GoldSet, GoldPair]]
"""The pairs that are asked about, each with its set."""


def gold_of(gate: Gate) -> tuple[list[GoldSet], list[tuple[GoldSet, GoldPair]]]:
    """The gate's sets, and of their pairs those that it asks for. Raises SetupError."""
    sets = [load_gold(name) for name in gate.gold]
    names = [s.name for s in sets]
    for name in names:
        if names.count(name) > 1 or name == ALL:
            raise SetupError(
                f"a gold set cannot be called {name!r}: another figure is",
                field="judge.gate.gold",
                fix="rename the file",
            )
    chosen = [(s, pair) for s in sets for pair in part_of(s.pairs, gate.part, gate.limit)]
    if all(pair.p_gold == 0.5 for _, pair in chosen):
        raise SetupError(
            f"of the gold sets {gate.part} has no pair with a better response",
            field="judge.gate.part",
            fix="use all, or more gold",
        )
    return sets, chosen


def asked_about(chosen: Chosen) -> list[Pair]:
    """As a judge is asked about them."""
    return [
        Pair(
            gold.prompt,
            _response(f"{s.name}:{gold.id}/first", gold, gold.first),
            _response(f"{s.name}:{gold.id}/second", gold, gold.second),
        )
        for s, gold in chosen
    ]


def _response(name: str, gold: GoldPair, text: str) -> Response:
    return Response(
        id=name, prompt_id=gold.prompt.id, text=text, finish_reason="stop", model="gold", call=""
    )


def rows_of(chosen: Chosen, verdicts: Verdicts, constitution: Constitution) -> list[Row]:
    """What the judge said of each beside what gold says."""
    orders = _orders(verdicts, constitution)
    return [
        Row(
            id=pair.id,
            prompt_id=pair.prompt.id,
            p_gold=gold.p_gold,
            annotators=gold.annotators,
            p_first=comparison.p_first,
            outcome=comparison.outcome,
            reason=comparison.reason,
            p_forward=by_order.get("forward"),
            p_swapped=by_order.get("swapped"),
            len_first=len(gold.first),
            len_second=len(gold.second),
        )
        for (_, gold), pair, comparison, by_order in zip(
            chosen, verdicts.pairs, verdicts.comparisons, orders, strict=True
        )
    ]


def _orders(verdicts: Verdicts, constitution: Constitution) -> list[dict[Order, float]]:
    """`_by_order` of every comparison."""
    by_comparison: dict[str, list[Judgment]] = defaultdict(list)
    for judgment in verdicts.judgments:
        by_comparison[judgment.comparison_id].append(judgment)
    weights = {p.id: p.weight for p in constitution.principles}
    return [_by_order(c, by_comparison[c.id], weights) for c in verdicts.comparisons]


def _by_order(
    comparison: Comparison, judgments: Sequence[Judgment], weights: Mapping[str, float]
) -> dict[Order, float]:
    """P(first) in each order: the weighted mean over the judgments that the label stands on, which
    are those of the deciding judges under principles with all orders scored."""
    asked: dict[tuple[str, str], list[Judgment]] = defaultdict(list)
    for j in judgments:
        if not comparison.escalated or j.judge == comparison.judge:
            asked[j.judge, j.principle_id].append(j)
    given: dict[Order, list[tuple[float, float]]] = defaultdict(list)
    for (_, principle_id), orders in asked.items():
        scored = [(j.order, j.p_first) for j in orders if j.p_first is not None]
        if len(scored) == len(orders):
            for order, p in scored:
                given[order].append((p, weights[principle_id]))
    return {
        order: sum(p * w for p, w in votes) / sum(w for _, w in votes)
        for order, votes in given.items()
    }


class Injected(NamedTuple):
    """Where an injection went."""

    at: int
    """Which gold pair."""
    first: bool
    """Whether the injection is in the first response."""
    name: str
    kind: str


def injected_of(chosen: Chosen, pairs: Sequence[Pair], times: int) -> list[tuple[Injected, Pair]]:
    """Each injection in the worse response of `times` decided gold pairs, taken in turn from all
    sets."""
    decided = sorted(
        (i for i, (_, gold) in enumerate(chosen) if gold.p_gold != 0.5),
        key=lambda i: digest([chosen[i][0].name, chosen[i][1].id]),
    )
    found = []
    for n, injection in enumerate(i for i in (*INJECTIONS, *CONTROLS) for _ in range(times)):
        at = decided[n % len(decided)]
        pair, first = pairs[at], chosen[at][1].p_gold == 0.0
        worse = pair.first if first else pair.second
        changed = worse.model_copy(
            update={
                "id": f"{worse.id}{INJECTED}{injection.name}#{n}",
                "text": inject(worse.text, injection),
            }
        )
        pair = pair._replace(first=changed) if first else pair._replace(second=changed)
        found.append((Injected(at, first, injection.name, injection.kind), pair))
    return found


def injections_of(
    injected: Sequence[tuple[Injected, Pair]],
    after: Verdicts,
    chosen: Chosen,
    before: Verdicts,
    constitution: Constitution,
    seed: int,
) -> InjectionFigures | None:
    """How often the injections turned a verdict; None: none was tried."""
    if not injected:
        return None
    orders_before, orders_after = _orders(before, constitution), _orders(after, constitution)
    orders: tuple[Order, ...] = ("forward", "swapped", "none")
    return injection_figures(
        [
            InjectionRow(
                name=what.name,
                kind=what.kind,
                prompt_id=chosen[what.at][1].prompt.id,
                before=tuple(_of(orders_before[what.at].get(o), what.first) for o in orders),
                after=tuple(_of(by_order.get(o), what.first) for o in orders),
            )
            for (what, _), by_order in zip(injected, orders_after, strict=True)
        ],
        seed,
    )


def _of(p_first: float | None, first: bool) -> float | None:
    return p_first if p_first is None or first else 1.0 - p_first
