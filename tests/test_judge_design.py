"""Which pairs are asked about, and what the answers say of the order of all responses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from rlaif.judge.aggregate import Pair
from rlaif.judge.design import (
    Adaptive,
    Group,
    Scored,
    fixed_design,
    groups_of,
    implied_order,
    posterior,
)
from rlaif.types import Message, Prompt, Response

sizes = st.integers(2, 7)
probabilities = st.floats(0.0, 1.0)


def group(prompt_id: str, K: int) -> Group:
    prompt = Prompt(id=prompt_id, messages=(Message(role="user", content="Why?"),))
    responses = [
        Response(
            id=f"{prompt_id}/{k}",
            prompt_id=prompt_id,
            text=f"Because of {k}.",
            finish_reason="stop",
            model="fake/policy",
            call="0" * 64,
        )
        for k in range(K)
    ]
    return prompt, responses


def places(pairs: Sequence[Pair], of: Group) -> list[tuple[int, int]]:
    """The pairs of one prompt by the places of their responses."""
    at = {response.id: k for k, response in enumerate(of[1])}
    return [(at[p.first.id], at[p.second.id]) for p in pairs if p.prompt.id == of[0].id]


def parts(K: int, pairs: Sequence[tuple[int, int]]) -> int:
    """Number of connected parts of the graph, by walking it."""
    unseen = set(range(K))
    count = 0
    while unseen:
        count += 1
        edge = {unseen.pop()}
        while edge:
            here = edge.pop()
            beside = {a + b - here for a, b in pairs if here in (a, b)} & unseen
            unseen -= beside
            edge |= beside
    return count


@st.composite
def tournaments(draw: st.DrawFn) -> tuple[int, list[Scored]]:
    """K and some of its pairs, each in either direction, with a probability or none."""
    K = draw(sizes)
    asked = draw(st.lists(st.sampled_from(list(combinations(range(K), 2))), unique=True))
    flips = draw(st.lists(st.booleans(), min_size=len(asked), max_size=len(asked)))
    said = st.none() | probabilities
    return K, [
        (j, i, draw(said)) if flip else (i, j, draw(said))
        for (i, j), flip in zip(asked, flips, strict=True)
    ]


# Fixed designs


def test_responses_are_grouped_by_prompt_in_the_order_of_the_input() -> None:
    (p, of_p), (q, of_q) = group("p", 2), group("q", 3)
    mixed = [of_q[2], of_p[0], of_q[0], of_p[1], of_q[1]]
    assert groups_of({"p": p, "q": q}, mixed) == [
        (q, [of_q[2], of_q[0], of_q[1]]),
        (p, [of_p[0], of_p[1]]),
    ]


def test_all_asks_about_every_two_responses_of_a_prompt_and_never_across_prompts() -> None:
    groups = [group("p", 3), group("q", 1), group("r", 4)]
    pairs = fixed_design("all", groups, None, 0)
    assert places(pairs, groups[0]) == [(0, 1), (0, 2), (1, 2)]
    assert places(pairs, groups[2]) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert len(pairs) == 9


@pytest.mark.parametrize(
    ("K", "m", "expected"),
    [
        (4, None, [(0, 1), (1, 2), (2, 3)]),
        (4, 3, [(0, 1), (1, 2), (2, 3)]),
        (4, 2, [(0, 1), (1, 2)]),
        (4, 4, [(0, 1), (0, 3), (1, 2), (2, 3)]),
        (4, 9, [(0, 1), (0, 3), (1, 2), (2, 3)]),
        (2, 2, [(0, 1)]),
        (1, None, []),
    ],
)
def test_adjacent_is_a_path_and_with_k_pairs_a_circle(
    K: int, m: int | None, expected: list[tuple[int, int]]
) -> None:
    of = group("p", K)
    assert places(fixed_design("adjacent", [of], m, 0), of) == expected


@given(K=sizes, m=st.integers(1, 25), seed=st.integers(0, 2**32))
def test_a_random_design_wastes_no_pair(K: int, m: int, seed: int) -> None:
    """m distinct pairs; below K each joins two parts, from K - 1 on the graph is connected."""
    of = group("p", K)
    chosen = places(fixed_design("random", [of], m, seed), of)
    assert len(chosen) == min(m, math.comb(K, 2))
    assert chosen == sorted(set(chosen))
    assert all(i < j for i, j in chosen)
    assert parts(K, chosen) == max(1, K - len(chosen))


@given(
    m=st.integers(1, 9), order=st.permutations(range(5)), prompts=st.permutations(["p", "q", "r"])
)
def test_a_random_design_does_not_depend_on_the_order_of_the_file(
    m: int, order: list[int], prompts: list[str]
) -> None:
    def ids(groups: Sequence[Group]) -> dict[str, set[frozenset[str]]]:
        found: dict[str, set[frozenset[str]]] = {}
        for pair in fixed_design("random", groups, m, 7):
            found.setdefault(pair.prompt.id, set()).add(frozenset((pair.first.id, pair.second.id)))
        return found

    straight = {i: group(i, 5) for i in ("p", "q", "r")}
    mixed = [(straight[i][0], [straight[i][1][k] for k in order]) for i in prompts]
    expected = ids(list(straight.values()))
    assert ids(mixed) == expected
    assert ids([straight["q"]])["q"] == expected["q"]


def test_a_larger_random_design_keeps_the_pairs_of_a_smaller_one() -> None:
    of = group("p", 6)
    nested = [set(places(fixed_design("random", [of], m, 3), of)) for m in range(1, 16)]
    assert all(small < large for small, large in pairwise(nested))


def test_another_seed_and_another_prompt_draw_other_pairs() -> None:
    groups = [group(f"p{n}", 6) for n in range(20)]
    drawn = [places(fixed_design("random", groups, 5, 0), of) for of in groups]
    assert len({tuple(d) for d in drawn}) > 10
    assert drawn != [places(fixed_design("random", groups, 5, 1), of) for of in groups]


def test_prompts_whose_responses_have_the_same_ids_draw_for_themselves() -> None:
    _, responses = group("p", 6)
    groups = [(group(f"p{n}", 0)[0], responses) for n in range(20)]
    drawn = {tuple(pair.id for pair in fixed_design("random", [of], 5, 0)) for of in groups}
    assert len(drawn) > 10


def test_every_pair_is_equally_likely_in_a_random_design() -> None:
    """3 of 6 pairs of 4,000 prompts: each 2,000 times, give or take four sd of 31.6."""
    groups = [group(f"p{n}", 4) for n in range(4000)]
    at = {r.id: k for _, responses in groups for k, r in enumerate(responses)}
    counts = Counter(
        (at[p.first.id], at[p.second.id]) for p in fixed_design("random", groups, 3, 0)
    )
    assert len(counts) == 6
    assert all(abs(n - 2000) < 4 * math.sqrt(4000 * 0.25) for n in counts.values())


@pytest.mark.parametrize(("kind", "m"), [("all", 3), ("random", None), ("random", 0)])
def test_a_design_with_the_wrong_number_is_refused(kind: str, m: int | None) -> None:
    with pytest.raises(ValueError, match="comparisons a prompt"):
        fixed_design(kind, [group("p", 3)], m, 0)  # type: ignore[arg-type]


# What comparisons say of the scores


def test_two_responses_by_hand() -> None:
    """One win, prior variance v = 2 ln 3. By symmetry s = (t, -t), and the gradient is zero where
    t / v = 1 - sigmoid(2 t); t = ln(3) / 2 makes both sides 1/4. There the Hessian has
    w = 3/4 * 1/4 between the two: the difference has variance 2 / (1/v + 2 w), the sum 2 v."""
    v = 2 * math.log(3)
    mean_K, cov_KK = posterior(2, [(0, 1, 1.0)], math.sqrt(v))
    assert mean_K == pytest.approx([math.log(3) / 2, -math.log(3) / 2])
    assert np.array([1, -1]) @ cov_KK @ [1, -1] == pytest.approx(2 / (1 / v + 2 * 3 / 16))
    assert np.array([1, 1]) @ cov_KK @ [1, 1] == pytest.approx(2 * v)


@settings(deadline=None)
@given(tournaments(), st.sampled_from([0.3, 1.0, 4.0]))
def test_the_mode_is_the_one_that_scipy_finds(
    tournament: tuple[int, list[Scored]], prior_sd: float
) -> None:
    K, comparisons = tournament

    def loss(s_K: np.ndarray) -> float:
        total = float(s_K @ s_K) / (2 * prior_sd**2)
        for i, j, p in comparisons:
            if p is not None:
                d = s_K[i] - s_K[j]
                total += p * np.logaddexp(0, -d) + (1 - p) * np.logaddexp(0, d)
        return total

    found = minimize(loss, np.zeros(K), method="BFGS", options={"gtol": 1e-7})
    mean_K, cov_KK = posterior(K, comparisons, prior_sd)
    assert loss(mean_K) <= found.fun + 1e-12
    assert mean_K == pytest.approx(found.x, abs=1e-4 * max(1.0, prior_sd**2))
    # The covariance is the inverse of the curvature, here by central differences.
    h = 1e-3
    e = np.eye(K) * h
    curvature_KK = np.array(
        [
            [
                loss(mean_K + a + b)
                - loss(mean_K + a - b)
                - loss(mean_K - a + b)
                + loss(mean_K - a - b)
                for b in e
            ]
            for a in e
        ]
    ) / (4 * h * h)
    assert cov_KK @ curvature_KK == pytest.approx(np.eye(K), abs=1e-3)


@given(tournaments())
def test_saying_it_the_other_way_round_says_the_same(
    tournament: tuple[int, list[Scored]],
) -> None:
    K, comparisons = tournament
    turned = [(j, i, None if p is None else 1.0 - p) for i, j, p in comparisons]
    straight, swapped = posterior(K, comparisons), posterior(K, turned)
    assert swapped.mean_K == pytest.approx(straight.mean_K, abs=1e-9)
    assert swapped.cov_KK == pytest.approx(straight.cov_KK, abs=1e-9)


@given(tournaments())
def test_a_judge_who_prefers_the_opposite_turns_the_order_over(
    tournament: tuple[int, list[Scored]],
) -> None:
    K, comparisons = tournament
    opposite = [(i, j, None if p is None else 1.0 - p) for i, j, p in comparisons]
    assert implied_order(K, opposite) == pytest.approx(-implied_order(K, comparisons), abs=1e-9)


@pytest.mark.parametrize("prior_sd", [0.05, 1.0, 50.0])
def test_a_perfect_ranking_comes_out_in_order_under_any_prior(prior_sd: float) -> None:
    said = [(i, j, 1.0) for i, j in combinations(range(8), 2)]
    assert np.all(np.diff(implied_order(8, said, prior_sd)) < 0)


def test_a_half_and_an_unscored_comparison_move_no_score() -> None:
    mean_K, cov_KK = posterior(3, [(0, 1, None), (1, 2, None)], 2.0)
    assert mean_K.tolist() == [0, 0, 0]
    assert cov_KK == pytest.approx(4.0 * np.eye(3))
    assert implied_order(3, [(0, 1, 0.5)]).tolist() == [0, 0, 0]


@pytest.mark.parametrize("wrong", [(0, 0, 0.5), (0, 3, 0.5), (-1, 0, 0.5), (0, 1, 1.5)])
def test_a_comparison_of_nothing_is_refused(wrong: Scored) -> None:
    with pytest.raises(ValueError, match=r"does not name two of 3|no probability"):
        posterior(3, [wrong])
    with pytest.raises(ValueError, match=r"does not name two of 3|no probability"):
        Adaptive(3).add(*wrong)


@pytest.mark.parametrize("prior_sd", [0.0, -1.0, 101.0, math.inf, math.nan])
def test_a_prior_that_says_nothing_usable_is_refused(prior_sd: float) -> None:
    with pytest.raises(ValueError, match="prior_sd"):
        posterior(2, [], prior_sd)


# The adaptive design


def asked(ranking: Adaptive, judge: dict[tuple[int, int], float | None], m: int) -> list[Scored]:
    """The first m questions with their answers."""
    found: list[Scored] = []
    while len(found) < m and (at := ranking.next()) is not None:
        found.append((*at, judge[at]))
        ranking.add(*at, judge[at])
    return found


def hard(scores: Sequence[float]) -> dict[tuple[int, int], float | None]:
    """A judge that is always right."""
    return {(i, j): float(scores[i] > scores[j]) for i, j in combinations(range(len(scores)), 2)}


@settings(deadline=None)
@given(K=st.integers(0, 6), data=st.data())
def test_adaptive_asks_every_pair_once_and_then_knows_what_all_would(
    K: int, data: st.DataObject
) -> None:
    every = list(combinations(range(K), 2))
    judge = {at: data.draw(st.none() | probabilities) for at in every}
    ranking = Adaptive(K)
    said = asked(ranking, judge, 100)
    assert sorted((i, j) for i, j, _ in said) == every
    assert ranking.next() is None
    of_all = posterior(K, [(*at, judge[at]) for at in every])
    assert ranking.posterior().mean_K == pytest.approx(of_all.mean_K, abs=1e-8)
    assert ranking.posterior().cov_KK == pytest.approx(of_all.cov_KK, abs=1e-8)


def test_the_best_of_two_winners_is_asked_before_what_is_nearly_known() -> None:
    """K = 4 and 0 > 1 > 2 > 3. (0, 1) comes first and (2, 3), of which nothing is known, next. Then
    the two winners are level and so are the two losers; the first pair in order goes first. Last
    come (1, 2), one step apart, and (0, 3), three steps apart."""
    said = asked(Adaptive(4), hard([4, 3, 2, 1]), 6)
    assert [(i, j) for i, j, _ in said] == [(0, 1), (2, 3), (0, 2), (1, 3), (1, 2), (0, 3)]


def test_five_questions_rank_four_responses_with_a_judge_that_is_always_right() -> None:
    """log2(24) > 4: no method needs fewer in the worst case."""
    for scores in permutations(range(4)):
        said = asked(Adaptive(4), hard(scores), 5)
        mean_K = implied_order(4, said)
        assert np.argsort(mean_K).tolist() == np.argsort(scores).tolist()


def test_an_unscored_pair_is_not_asked_again_and_teaches_nothing() -> None:
    ranking = Adaptive(3)
    assert ranking.next() == (0, 1)
    ranking.add(0, 1, None)
    assert ranking.posterior().mean_K.tolist() == [0, 0, 0]
    assert ranking.next() == (0, 2)
    ranking.add(2, 0, 0.9)
    mean_K = ranking.posterior().mean_K
    assert mean_K[2] > mean_K[1] == 0 > mean_K[0]
    # 1 is as far from the winner as from the loser, so the first pair would come next; but it
    # has been asked.
    assert ranking.next() == (1, 2)
    ranking.add(1, 2, 0.5)
    assert ranking.next() is None


def test_of_pairs_with_level_scores_the_looser_one_is_asked() -> None:
    """After a tie of 0 and 1 all scores are level, but (2, 3) is the pair nobody has spoken of:
    its difference has variance 2, and that of (0, 2) has less."""
    ranking = Adaptive(4)
    ranking.add(0, 1, 0.5)
    assert ranking.next() == (2, 3)


def test_next_is_the_same_until_it_is_answered_and_a_pair_is_answered_once() -> None:
    ranking = Adaptive(3)
    assert ranking.next() == ranking.next() == (0, 1)
    ranking.add(1, 0, 0.2)
    with pytest.raises(ValueError, match="asked before"):
        ranking.add(0, 1, 0.8)


def entropy(ranking: Adaptive, at: tuple[int, int]) -> float:
    """Of the order of two scores, in nats."""
    mean_K, cov_KK = ranking.posterior()
    e_K = np.zeros(len(mean_K))
    e_K[at[0]], e_K[at[1]] = 1, -1
    p = 0.5 * math.erfc(-(e_K @ mean_K) / math.sqrt(2 * e_K @ cov_KK @ e_K))
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


@settings(deadline=None)
@given(K=st.integers(2, 6), data=st.data())
def test_the_next_pair_is_the_one_with_the_largest_entropy(K: int, data: st.DataObject) -> None:
    every = list(combinations(range(K), 2))
    judge = {at: data.draw(st.none() | probabilities) for at in every}
    m = data.draw(st.integers(0, len(every) - 1))
    ranking = Adaptive(K)
    done = {(i, j) for i, j, _ in asked(ranking, judge, m)}
    chosen = ranking.next()
    assert chosen is not None
    assert chosen not in done
    most = max(entropy(ranking, at) for at in every if at not in done)
    assert entropy(ranking, chosen) >= most - 1e-9


def test_what_two_scores_have_in_common_counts() -> None:
    """Unasked are (1, 3) and (2, 3). With each score's variance alone (2, 3) is the less certain,
    with their covariances (1, 3) is."""
    ranking = Adaptive(4, prior_sd=3.0)
    for i, j, p in [(0, 2, 0.5), (0, 3, 0.2), (0, 1, 0.0), (1, 2, 1.0)]:
        ranking.add(i, j, p)
    mean_K, cov_KK = ranking.posterior()
    alone = {
        (i, j): abs(mean_K[i] - mean_K[j]) / math.sqrt(cov_KK[i, i] + cov_KK[j, j])
        for i, j in [(1, 3), (2, 3)]
    }
    assert alone[2, 3] < alone[1, 3] - 1e-3
    assert entropy(ranking, (1, 3)) > entropy(ranking, (2, 3)) + 1e-3
    assert ranking.next() == (1, 3)
