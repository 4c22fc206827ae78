"""From judgments to votes to comparisons: arithmetic, with nothing lost on the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.constitution import Constitution, Principle
from rlaif.judge.aggregate import Pair, all_pairs, compare, ledger
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
        constitution(*(weights or [1.0] * len(votes))),
        orders=2,
        tie_margin=tie_margin,
        min_voting_weight=min_voting_weight,
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
    found = added_up(votes, [w for _, w in asked], tie_margin=1e-12)
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
    kwargs = {"tie_margin": 0.01, "min_voting_weight": 0.5}
    two = constitution(1.0, 1.0)
    assert compare(PAIR, given_reasons, two, orders=2, **kwargs).reason == "rejected"
    given_reasons[1] = asked[1].model_copy(update={"reason": "unreadable"})
    assert compare(PAIR, given_reasons, two, orders=2, **kwargs).reason == "unreadable"


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
            constitution(1.0, 2.0, 0.5),
            orders=2,
            tie_margin=tie_margin,
            min_voting_weight=min_voting_weight,
        )
        for votes, reason in asked
    ]
    outcomes, unscored = ledger(comparisons)
    assert set(outcomes) == {"A", "B", "tie"}
    assert sum(outcomes.values()) + sum(unscored.values()) == len(asked)
    assert set(unscored) <= set(REASONS)
    for comparison in comparisons:
        assert (comparison.p_first is None) == (comparison.outcome == "unscored")


def test_every_two_responses_to_a_prompt_are_a_pair_once() -> None:
    pairs = all_pairs({"p": PROMPT}, [response(str(i)) for i in range(4)])
    assert [p.id for p in pairs] == [f"p/{i}|p/{j}" for i in range(4) for j in range(i + 1, 4)]
