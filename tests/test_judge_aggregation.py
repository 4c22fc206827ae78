"""From judgments to votes to comparisons: arithmetic, with nothing lost on the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.constitution import Constitution, Principle
from rlaif.evaluate.judge_figures import JudgeTally
from rlaif.judge.aggregate import (
    Pair,
    Rule,
    compare,
    ledger,
    merge,
    outcome_of,
    overrule,
)
from rlaif.judge.ask import OfPair
from rlaif.types import Comparison, Judgment, Message, Order, Prompt, Response

PROMPT = Prompt(id="p", messages=(Message(role="user", content="Hello?"),))
REASONS = ("empty", "rejected", "unreadable")
probabilities = st.floats(min_value=0.0, max_value=1.0)
Votes = list[tuple[float | None, float | None]]
"""For each principle P(first preferred) in the forward and in the swapped order; None: unscored."""


def response(name: str, text: str | None = None) -> Response:
    return Response(
        id=f"p/{name}",
        prompt_id="p",
        text=name if text is None else text,
        finish_reason="stop",
        model="m",
        call="0" * 64,
    )


PAIR = Pair(PROMPT, response("0"), response("1"))


def constitution(*weights: float) -> Constitution:
    return Constitution(
        id="test",
        version="1",
        description="For a test.",
        principles=tuple(
            Principle(id=f"p{i}", text="Be good.", weight=w) for i, w in enumerate(weights)
        ),
    )


def judgments(votes: Votes, pair: Pair = PAIR, reason: str = "empty") -> list[Judgment]:
    orders: tuple[Order, Order] = ("forward", "swapped")
    return [
        Judgment(
            comparison_id=pair.id,
            judge="m",
            principle_id=f"p{i}",
            order=order,
            p_first=p,
            label_mass=None,
            reason="" if p is not None else reason,
            calls=(),
        )
        for i, vote in enumerate(votes)
        for order, p in zip(orders, vote, strict=True)
    ]


def added_up(
    votes: Votes,
    weights: list[float] | None = None,
    *,
    pair: Pair = PAIR,
    tie_margin: float = 0.01,
    min_voting_weight: float = 0.5,
) -> Comparison:
    return compare(
        pair,
        judgments(votes, pair),
        [constitution(*(weights or [1.0] * len(votes))).principles],
        Rule(tie_margin, min_voting_weight),
        judge="m",
        orders=2,
    )


@given(
    st.lists(
        st.tuples(probabilities | st.none(), probabilities | st.none(), st.floats(0.01, 100.0)),
        min_size=1,
        max_size=6,
    )
)
def test_swapping_the_inputs_turns_p_into_one_minus_p(
    asked: list[tuple[float | None, float | None, float]],
) -> None:
    weights = [w for _, _, w in asked]
    # The same answers of the judge, with first and second exchanged: what was said in the forward
    # order is now said in the swapped one, and of the other response.
    other: Votes = [
        (None if s is None else 1.0 - s, None if f is None else 1.0 - f) for f, s, _ in asked
    ]
    one = added_up([(f, s) for f, s, _ in asked], weights)
    two = added_up(other, weights, pair=Pair(PROMPT, PAIR.second, PAIR.first))
    if one.p_first is None:
        assert two.p_first is None
        return
    assert two.p_first == pytest.approx(1.0 - one.p_first, abs=1e-9)
    if abs(abs(one.p_first - 0.5) - 0.01) > 1e-9:  # not on the margin itself
        assert two.outcome == {"A": "B", "B": "A", "tie": "tie"}[one.outcome]


@given(st.lists(st.tuples(probabilities, st.floats(0.01, 100.0)), min_size=1, max_size=6))
def test_purely_positional_judge_yields_no_pairs(asked: list[tuple[float, float]]) -> None:
    # It says "the response shown first" with probability q, whatever stands there.
    votes: Votes = [(q, 1.0 - q) for q, _ in asked]
    found = added_up(votes, [w for _, w in asked], tie_margin=0.0)
    assert found.p_first == pytest.approx(0.5, abs=1e-12)
    assert found.outcome == "tie"


def test_votes_are_means_over_the_orders_and_p_is_their_weighted_mean() -> None:
    found = added_up([(0.9, 0.7), (0.2, 0.4)], [3.0, 1.0])
    assert found.votes == {"p0": pytest.approx(0.8), "p1": pytest.approx(0.3)}
    assert found.p_first == pytest.approx((3 * 0.8 + 0.3) / 4)
    assert found.outcome == "A"
    assert added_up([(0.9, 0.7), (0.2, 0.4)], [1.0, 3.0]).outcome == "B"


def test_only_what_lies_beyond_the_margin_has_a_winner() -> None:
    assert added_up([(0.6, 0.42)], tie_margin=0.02).outcome == "tie"
    assert added_up([(0.6, 0.46)], tie_margin=0.02).outcome == "A"
    assert added_up([(0.4, 0.54)], tie_margin=0.02).outcome == "B"
    assert added_up([(0.5, 0.5)], tie_margin=0.0).outcome == "tie"


def test_identical_texts_are_a_tie_whatever_the_judge_says() -> None:
    same = Pair(PROMPT, response("0", "Hi."), response("1", "Hi."))
    found = added_up([(0.99, 0.99)], pair=same)
    assert found.outcome == "tie"
    assert found.p_first == pytest.approx(0.99)


def test_a_principle_with_one_unscored_order_does_not_vote() -> None:
    found = added_up([(0.9, None), (0.2, 0.2)])
    assert found.votes == {"p1": pytest.approx(0.2)}
    assert found.p_first == pytest.approx(0.2)


def test_a_comparison_needs_the_voting_weight_that_the_config_asks_for() -> None:
    votes: Votes = [(0.9, None), (0.2, 0.2)]
    assert added_up(votes, [3.0, 1.0], min_voting_weight=0.25).outcome == "B"
    lost = added_up(votes, [3.0, 1.0], min_voting_weight=0.26)
    assert (lost.outcome, lost.p_first, lost.reason) == ("unscored", None, "empty")
    assert lost.votes == {"p1": pytest.approx(0.2)}


def test_an_unscored_comparison_gives_the_commonest_reason_and_of_equals_the_first_by_name() -> (
    None
):
    asked = judgments([(None, None), (None, None)])
    reasons = ["unreadable", "rejected", "unreadable", "rejected"]
    given_reasons = [
        j.model_copy(update={"reason": reason}) for j, reason in zip(asked, reasons, strict=True)
    ]
    two = [constitution(1.0, 1.0).principles]
    rule = Rule(0.01, 0.5)
    assert compare(PAIR, given_reasons, two, rule, judge="m", orders=2).reason == "rejected"
    given_reasons[1] = asked[1].model_copy(update={"reason": "unreadable"})
    assert compare(PAIR, given_reasons, two, rule, judge="m", orders=2).reason == "unreadable"


@given(
    st.lists(
        st.tuples(
            st.lists(
                st.tuples(probabilities | st.none(), probabilities | st.none()),
                min_size=3,
                max_size=3,
            ),
            st.sampled_from(REASONS),
        ),
        max_size=12,
    ),
    st.floats(0.0, 0.49),
    st.floats(0.01, 1.0),
)
def test_the_ledger_adds_up(
    asked: list[tuple[Votes, str]], tie_margin: float, min_voting_weight: float
) -> None:
    comparisons = [
        compare(
            PAIR,
            judgments(votes, reason=reason),
            [constitution(1.0, 2.0, 0.5).principles],
            Rule(tie_margin, min_voting_weight),
            judge="m",
            orders=2,
        )
        for votes, reason in asked
    ]
    counts = ledger(comparisons)
    assert counts.requested == len(asked)
    assert set(counts.unscored) <= set(REASONS)
    for comparison in comparisons:
        assert (comparison.p_first is None) == (comparison.outcome == "unscored")


def tiered(*tiers: tuple[float | None, float | None]) -> Comparison:
    """One principle a tier, asked in both orders."""
    principles = [[p] for p in constitution(*[1.0] * len(tiers)).principles]
    given = judgments(list(tiers))
    return compare(PAIR, given, principles, Rule(0.01, 0.5), judge="m", orders=2)


def test_a_higher_tier_decides_alone() -> None:
    found = tiered((0.6, 0.6), (0.01, 0.01))
    assert (found.outcome, found.p_first) == ("A", pytest.approx(0.6))
    assert found.votes == {"p0": pytest.approx(0.6)}


def test_a_lower_tier_decides_what_leaves_the_higher_one_indifferent() -> None:
    found = tiered((0.9, 0.1), (0.2, 0.2))
    assert (found.outcome, found.p_first) == ("B", pytest.approx(0.2))
    assert found.votes == {"p0": pytest.approx(0.5), "p1": pytest.approx(0.2)}
    assert tiered((0.9, 0.1), (0.3, 0.7)).outcome == "tie"


def test_a_lower_tier_does_not_overrule_a_higher_one_that_could_not_be_read() -> None:
    found = tiered((0.9, None), (0.2, 0.2))
    assert (found.outcome, found.reason) == ("unscored", "empty")


def said(judge: str, p: float | None, votes: dict[str, float] | None = None) -> Comparison:
    return Comparison(
        id=PAIR.id,
        prompt_id="p",
        first=PAIR.first.id,
        second=PAIR.second.id,
        judge=judge,
        outcome=outcome_of(p, 0.01),
        p_first=p,
        votes=votes or ({} if p is None else {"p0": p}),
        orders=2,
        reason="" if p is not None else "empty",
    )


def test_a_panel_says_the_mean_of_its_judges_and_keeps_how_far_they_are_apart() -> None:
    found = merge(PAIR, [said("x", 0.9), said("y", 0.6), said("z", 0.3)], Rule(0.01, 0.5))
    assert (found.judge, found.outcome) == ("panel", "A")
    assert found.p_first == pytest.approx(0.6)
    assert found.disagreement == pytest.approx(0.6)
    assert found.by_judge == {"x": 0.9, "y": 0.6, "z": 0.3}
    assert found.votes == {"p0": pytest.approx(0.6)}


def test_a_panel_of_which_too_few_could_be_read_says_nothing() -> None:
    judges = [said("x", 0.9), said("y", None), said("z", None)]
    lost = merge(PAIR, judges, Rule(0.01, 0.5))
    assert (lost.outcome, lost.reason, lost.disagreement) == ("unscored", "empty", None)
    assert lost.by_judge == {"x": 0.9, "y": None, "z": None}
    assert merge(PAIR, judges, Rule(0.01, 0.3)).p_first == pytest.approx(0.9)


def test_one_judge_is_no_panel() -> None:
    assert merge(PAIR, [said("x", 0.9)], Rule(0.01, 0.5)) == said("x", 0.9)


def test_the_strong_judge_has_the_last_word_and_the_first_ones_are_kept() -> None:
    found = overrule(said("cheap", 0.55), said("strong", 0.2), "margin")
    assert (found.judge, found.outcome, found.p_first) == ("strong", "B", 0.2)
    assert found.by_judge == {"cheap": 0.55, "strong": 0.2}
    assert found.disagreement == pytest.approx(0.35)
    assert found.escalated == "margin"
    assert overrule(said("cheap", 0.55), said("strong", None), "margin").outcome == "unscored"


@given(
    st.lists(
        st.tuples(probabilities | st.none(), probabilities | st.none()), min_size=1, max_size=9
    )
)
def test_the_ledgers_by_principle_and_by_judge_add_up(votes: Votes) -> None:
    tally = JudgeTally(constitution(*[1.0] * len(votes)), 0.01)
    for judge in ("m", "n"):
        tally.judged(OfPair(PAIR, judgments(votes), said(judge, None)))
    by_principle, by_judge = tally.labels().by_principle, tally.labels().by_judge
    assert {i: counts.requested for i, counts in by_principle.items()} == {
        f"p{i}": 2 for i in range(len(votes))
    }
    assert {i: counts.requested for i, counts in by_judge.items()} == {
        "m": len(votes),
        "n": len(votes),
    }
    assert by_judge["m"] == by_judge["n"]
    lost = sum(None in vote for vote in votes)
    assert sum(by_judge["m"].unscored.values()) == lost
