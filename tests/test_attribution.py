"""What each principle did to a run: counted from stored votes, held against brute force."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import chat_request
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlaif.callstore import CallStore, call_key
from rlaif.constitution import Constitution, Principle, load_constitution
from rlaif.errors import SetupError
from rlaif.evaluate.attribution import ALIKE, Attribution, Finding
from rlaif.evaluate.attribution_figures import Resamples, attribute
from rlaif.evaluate.attribution_page import render_attribution, write_attribution
from rlaif.evaluate.attribution_words import sentences
from rlaif.evaluate.intervals import clustered_share
from rlaif.files import read_jsonl
from rlaif.judge.aggregate import Pair, Rule, compare, merge, overrule
from rlaif.judge.ask import Tiers
from rlaif.judge.cascade import doubt, split
from rlaif.judge.config import AskConfig, JudgeConfig
from rlaif.judge.recount import Labelled, Tally, orders_of
from rlaif.recipe import execute, load_run
from rlaif.stages.attribution import read_human, read_run, report_run, tokens_of
from rlaif.types import ChatReply, Choice, Comparison, Judgment, Message, Order, Prompt, Response

Vote = Callable[[str, str, str, str], float | None]
"""Judge, comparison, principle, order -> P(first), turned back; None: unscored."""


def constitution(*principles: dict[str, Any] | Principle, **more: Any) -> Constitution:
    return Constitution.model_validate(
        {
            "id": "planted",
            "principles": [
                p if isinstance(p, Principle) else {"text": f"Be {p['id']}.", **p}
                for p in principles
            ],
            **more,
        }
    )


def without(of: Constitution, *ids: str) -> Constitution:
    return of.model_copy(update={"principles": tuple(p for p in of.principles if p.id not in ids)})


def judging(**fields: Any) -> JudgeConfig:
    return JudgeConfig.model_validate({"model": "fake/first", "constitution": "-", **fields})


def prompts_and_pairs(
    prompts: int, responses: int, texts: Callable[[int, int], str] | None = None
) -> tuple[list[Prompt], list[Response], list[Pair]]:
    """Prompts, every second one tagged `odd`, and all pairs of their responses."""
    asked = [
        Prompt(
            id=f"p{i}",
            messages=(Message(role="user", content=f"Question {i}?"),),
            tags=("odd",) if i % 2 else (),
        )
        for i in range(prompts)
    ]
    said = [
        [
            Response(
                id=f"{prompt.id}/{k}",
                prompt_id=prompt.id,
                text=texts(i, k) if texts else f"{prompt.id} {'very ' * ((i + k) % 3)}{k}",
                finish_reason="stop",
                model="m",
                call="",
            )
            for k in range(responses)
        ]
        for i, prompt in enumerate(asked)
    ]
    pairs = [
        Pair(prompt, group[i], group[j])
        for prompt, group in zip(asked, said, strict=True)
        for i in range(responses)
        for j in range(i + 1, responses)
    ]
    return asked, [r for group in said for r in group], pairs


def asked(
    of: Constitution,
    config: JudgeConfig,
    vote: Vote,
    made: tuple[list[Prompt], list[Response], list[Pair]],
    seed: int = 0,
) -> Labelled:
    """A run whose judges say what `vote` says, asked as `Judge` and `Panel` ask."""
    tiers, rule = Tiers(config, of, seed), Rule(config.tie_margin, config.min_voting_weight)
    pairs = made[2]
    names = [f"judge-{n}" for n in range(len(config.judges()))]

    def judged(name: str, how: AskConfig, pair: Pair) -> tuple[list[Judgment], Comparison]:
        orders: tuple[Order, ...] = ("forward", "swapped")[: orders_of(how)]
        given: list[Judgment] = []
        found, reached = None, tiers.of(pair)
        for depth in range(max(len(reached), 1)):
            for principle in reached[depth] if reached else ():
                for order in orders:
                    p = vote(name, pair.id, principle.id, order)
                    given.append(
                        Judgment(
                            comparison_id=pair.id,
                            judge=name,
                            principle_id=principle.id,
                            order=order,
                            p_first=p,
                            label_mass=None,
                            reason="" if p is not None else "empty",
                            calls=(f"{name}:{pair.id}:{principle.id}:{order}",),
                        )
                    )
            found = compare(pair, given, reached[: depth + 1], rule, judge=name, orders=len(orders))
            if found.outcome != "tie" or pair.same_text:
                break
        assert found is not None
        return given, found

    beside = 1 + len(config.panel)
    said = [
        [judged(name, how, pair) for pair in pairs]
        for name, (_, how) in zip(names[:beside], config.judges(), strict=False)
    ]
    judgments = [j for of_judge in said for given, _ in of_judge for j in given]
    comparisons = []
    strong_said: list[Judgment] = []
    for i, pair in enumerate(pairs):
        found = merge(pair, [of_judge[i][1] for of_judge in said], rule)
        if config.cascade is not None and not pair.same_text:
            before = [j for of_judge in said for j in of_judge[i][0]]
            margin = config.tie_margin
            if why := doubt(found.p_first, found.votes, split(before), config.cascade, margin):
                more, strong = judged(names[-1], config.cascade, pair)
                strong_said += more
                found = overrule(found, strong, why)
        comparisons.append(found)
    judgments += strong_said
    tokens = {call: (10, 1) for j in judgments for call in j.calls}
    return Labelled(of, config, seed, made[0], made[1], judgments, comparisons, tokens)


def again(run: Labelled, of: Constitution) -> list[Comparison]:
    """What judges that answer as `runs` has them answer say when they are asked again."""
    made = (list(run.prompts), list(run.responses), [ballot.pair for ballot in run.ballots().all])
    return asked(of, run.config, drawn_vote(run.seed, GRID), made, run.seed).comparisons


def drawn_vote(seed: int, choices: Sequence[float | None]) -> Vote:
    """A vote out of `choices`, always the same for the same question."""
    return lambda *question: random.Random(f"{seed}{question}").choice(choices)


GRID = (0.0, 0.25, 0.45, 0.5, 0.5, 0.55, 0.75, 1.0, None)


@st.composite
def runs(draw: st.DrawFn, cascade: bool = True) -> Labelled:
    """Any small run: weights, tiers, conditions, panels, cascades, one order or both."""
    ids = ["a", "b", "c", "d"][: draw(st.integers(1, 4))]
    weights = [draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])) for _ in ids]
    weights[draw(st.integers(0, len(ids) - 1))] = 1.0
    of = constitution(
        *(
            {
                "id": i,
                "weight": weight,
                "tier": draw(st.integers(1, 3)),
                "text": draw(st.sampled_from([f"Be {i}.", "Be alike."])),
                "applies_when": draw(st.sampled_from(["", "", "'odd' in tags"])),
            }
            for i, weight in zip(ids, weights, strict=True)
        )
    )
    member = {"model": "fake/longer", "both_orders": draw(st.booleans())}
    config = judging(
        principles=draw(st.sampled_from(["all", "tiers", "sample"])),
        both_orders=draw(st.booleans()),
        panel=[member] * draw(st.integers(0, 2)),
        cascade={"model": "fake/shorter"} if cascade and draw(st.booleans()) else None,
        tie_margin=draw(st.sampled_from([0.0, 0.01, 0.05])),
        min_voting_weight=draw(st.sampled_from([0.1, 0.5, 1.0])),
    )
    # Some prompts have two identical answers.
    made = prompts_and_pairs(3, 3, lambda i, k: "same" if i == 0 and k else "x" * (k + 1))
    seed = draw(st.integers(0, 10_000))
    return asked(of, config, drawn_vote(seed, GRID), made, seed)


@settings(max_examples=150)
@given(runs())
def test_flips_are_those_of_asking_again_without_the_principle(run: Labelled) -> None:
    tally = Tally(run.ballots(), run.constitution, run.seed)
    for p in attribute(run, {}).principles:
        rest = {q.id: q.weight for q in run.constitution.principles if q.id != p.id}
        after = ["unscored"] * len(run.comparisons)
        if any(rest.values()):
            after = [c.outcome for c in again(run, without(run.constitution, p.id))]
        labels = tally.labels(rest)
        for label, truth in zip(labels, after, strict=True):
            assert label.outcome in (truth, "open")
        told = [
            (c.outcome, truth)
            for c, truth, label in zip(run.comparisons, after, labels, strict=True)
            if label.outcome != "open"
        ]
        flips = Counter(f"{outcome}->{truth}" for outcome, truth in told if outcome != truth)
        assert p.flips == flips
        assert p.flip_rate.value == pytest.approx(flips.total() / len(run.comparisons))
        assert p.open == len(run.comparisons) - len(told)
        if run.config.principles == "all" and run.config.cascade is None:
            assert p.open == 0


@settings(max_examples=150)
@given(runs(), st.lists(st.sampled_from([0.0, 0.3, 1.0, 4.0]), min_size=4, max_size=4))
def test_a_tally_under_other_weights_is_what_asking_again_says(
    run: Labelled, weights: list[float]
) -> None:
    of = run.constitution.model_copy(
        update={
            "principles": tuple(
                p.model_copy(update={"weight": w})
                for p, w in zip(run.constitution.principles, weights, strict=False)
            )
        }
    )
    if not any(p.weight for p in of.principles):
        return
    tally = Tally(run.ballots(), of, run.seed)
    for label, truth in zip(
        tally.labels({p.id: p.weight for p in of.principles}), again(run, of), strict=True
    ):
        assert label.outcome == "open" or label == (truth.outcome, truth.p_first)


@settings(max_examples=60)
@given(runs())
def test_the_suggested_constitution_changes_no_more_labels_than_it_says(run: Labelled) -> None:
    # Under other ids other principles would be drawn.
    assume(run.config.principles != "sample")
    # Enough of everything to be told: the same run, over and over, under other prompts.
    found = attribute(_repeated(run, 9), {})
    if found.smaller is None:
        return
    kept = run.constitution.model_copy(
        update={
            "principles": tuple(
                p for p in run.constitution.principles if p.id in found.smaller.kept
            )
        }
    )
    moved = [a.outcome != b.outcome for a, b in zip(again(run, kept), run.comparisons, strict=True)]
    assert sum(moved) / len(moved) <= found.smaller.changed.value + 1e-9
    assert found.smaller.changed.value <= 0.02


def _repeated(run: Labelled, times: int) -> Labelled:
    def named(text: str, n: int) -> str:
        return "|".join(f"{n}-{part}" for part in text.split("|"))

    many = range(times)
    return run._replace(
        prompts=[p.model_copy(update={"id": named(p.id, n)}) for n in many for p in run.prompts],
        responses=[
            r.model_copy(update={"id": named(r.id, n), "prompt_id": named(r.prompt_id, n)})
            for n in many
            for r in run.responses
        ],
        judgments=[
            j.model_copy(update={"comparison_id": named(j.comparison_id, n)})
            for judge in dict.fromkeys(j.judge for j in run.judgments)
            for n in many
            for j in run.judgments
            if j.judge == judge
        ],
        comparisons=[
            c.model_copy(
                update={
                    "id": named(c.id, n),
                    "prompt_id": named(c.prompt_id, n),
                    "first": named(c.first, n),
                    "second": named(c.second, n),
                }
            )
            for n in many
            for c in run.comparisons
        ],
    )


def test_labels_that_hang_on_what_was_never_asked_are_open_and_no_flips() -> None:
    of = constitution({"id": "one"}, {"id": "two", "tier": 2})
    made = prompts_and_pairs(1, 3)
    level = made[2][0].id

    def vote(_: str, pair: str, principle: str, __: str) -> float:
        return 0.5 if (pair, principle) == (level, "one") else 0.9

    found = attribute(asked(of, judging(principles="tiers"), vote, made), {})
    one, two = found.principles
    # The second tier was asked about the first pair only; there it decides, with or without `one`.
    assert (one.flips, one.open) == ({}, 2)
    assert (two.flips, two.open) == ({"A->tie": 1}, 0)
    assert any("Of 67 % more nobody can say" in line for line in sentences(found))
    drawn = asked(of, judging(principles="sample"), vote, made)
    for p in attribute(drawn, {}).principles:
        assert (p.flips, p.open, p.agrees_with_total) == ({}, p.asked, None)


def test_a_cascade_that_would_ask_its_strong_judge_leaves_the_label_open() -> None:
    of = constitution({"id": "one", "weight": 2.0}, {"id": "two"}, {"id": "three"})
    config = judging(cascade={"model": "fake/longer", "margin": 0.1, "when": ["margin"]})
    made = prompts_and_pairs(1, 3)
    clear, doubtful, turned = (pair.id for pair in made[2])
    votes = {
        # (one, two, three): 2:1:1
        clear: (0.9, 0.9, 0.9),
        doubtful: (0.5, 0.6, 0.4),  # .5: the strong judge is asked
        turned: (0.9, 0.6, 0.4),  # .7: without one .5, and the strong judge is asked
    }

    def vote(judge: str, pair: str, principle: str, _: str) -> float:
        return 0.95 if judge == "judge-1" else votes[pair][("one", "two", "three").index(principle)]

    run = asked(of, config, vote, made)
    assert [c.escalated for c in run.comparisons] == ["", "margin", ""]
    one, two, three = attribute(run, {}).principles
    assert (one.flips, one.open) == ({}, 1)
    # Without `three` .53 in place of .5, and without `two` .47: still in doubt, and asked.
    assert (two.flips, two.open, three.flips, three.open) == ({}, 0, {}, 0)


def test_a_principle_that_nobody_could_replace_does_not_dominate_for_that() -> None:
    """In tiers, without the first: every label hangs on a second tier that was never asked."""
    of = constitution({"id": "big"}, {"id": "low", "tier": 2})
    run = asked(of, judging(principles="tiers"), lambda *_: 0.9, prompts_and_pairs(60, 2))
    found = attribute(run, {})
    assert found.principles[0].open == 60
    assert "dominating" not in {f.kind for f in found.findings}
    assert found.smaller is not None
    assert found.smaller.dropped == ("low",)


def test_a_principle_without_weight_is_dead_and_not_redundant() -> None:
    rng = random.Random(0)
    made = prompts_and_pairs(60, 2)
    said = {pair.id: rng.random() for pair in made[2]}
    of = constitution({"id": "one"}, {"id": "idle", "weight": 0.0})
    found = attribute(asked(of, judging(), lambda _, pair, *__: said[pair], made), {})
    assert [(f.kind, f.principle) for f in found.findings if f.principle == "idle"] == [
        ("dead", "idle")
    ]


def test_a_config_of_other_judges_is_refused() -> None:
    made = prompts_and_pairs(1, 2)
    run = asked(constitution({"id": "one"}), judging(), lambda *_: 0.9, made)
    with pytest.raises(SetupError, match="those of 1 judges, the config names 2"):
        run._replace(config=judging(panel=[{"model": "fake/longer"}])).ballots()


def hand_made() -> Labelled:
    """Two principles, four pairs of one prompt each: votes and lengths chosen by hand."""
    table = {
        # pair: (brief forward, swapped), (kind forward, swapped)
        "p0/0|p0/1": ((0.9, 0.9), (0.6, 0.6)),  # both say A
        "p1/0|p1/1": ((0.9, 0.5), (0.2, 0.2)),  # 0.7 and 0.2: level with weights 3 and 2 -> 0.5
        "p2/0|p2/1": ((0.1, 0.7), (0.5, 0.5)),  # 0.4 and level: B, by brief alone
        "p3/0|p3/1": ((0.3, 0.3), (0.9, 0.9)),  # 0.3 and 0.9: 0.54, A
    }
    of = constitution({"id": "brief", "weight": 3.0}, {"id": "kind", "weight": 2.0})
    made = prompts_and_pairs(4, 2, lambda i, k: "y" * 10 if k else "x" * (20 - 5 * i))
    return asked(
        of,
        judging(),
        lambda _, pair, principle, order: table[pair][principle == "kind"][order == "swapped"],
        made,
    )


def test_the_figures_are_those_worked_by_hand() -> None:
    run = hand_made()
    assert [c.outcome for c in run.comparisons] == ["A", "tie", "B", "A"]
    found = attribute(run, {"people": [(c, 1.0) for c in run.comparisons]})
    brief, kind = found.principles
    # Without brief: A, B, tie, A. Without kind: A, A, B, B.
    assert brief.flips == {"tie->B": 1, "B->tie": 1}
    assert kind.flips == {"tie->A": 1, "A->B": 1}
    assert brief.flip_rate.value == kind.flip_rate.value == 0.5
    assert brief.decided is not None
    assert kind.decided is not None
    assert (brief.decided.value, kind.decided.value) == pytest.approx((1 / 3, 1 / 3))
    assert brief.decided_alone is not None
    assert kind.decided_alone is not None
    assert (brief.decided_alone.value, kind.decided_alone.value) == pytest.approx((1 / 3, 0.0))
    # brief decides everywhere: A, A, B, B; the label has winners on three, the same on two.
    assert brief.agrees_with_total is not None
    assert (brief.agrees_with_total.value, brief.agrees_with_total.n) == pytest.approx((2 / 3, 3))
    # kind says A, B, level, A: on three pairs both decide, and on one of them alike.
    assert kind.agrees_with_others is not None
    assert (kind.agrees_with_others.value, kind.agrees_with_others.n) == pytest.approx((1 / 3, 3))
    assert (brief.decides, kind.decides) == (1.0, 0.75)
    (both,) = found.together
    assert both.conflict is not None
    assert (both.conflict.value, both.decided, both.votes) == pytest.approx((2 / 3, 3, 4))
    # Pearson of (.9, .7, .4, .3) and (.6, .2, .5, .9), by hand: -.115 / sqrt(.2275 * .25).
    assert both.correlation is not None
    assert both.correlation.value == pytest.approx(-0.115 / (0.2275 * 0.25) ** 0.5)
    assert kind.correlation_with_others is not None
    assert kind.correlation_with_others.value == pytest.approx(both.correlation.value)
    # The first response is longer on p0 and p1, as long on p2 and shorter on p3; brief says A, A,
    # B, B.
    assert brief.prefers_longer is not None
    assert (brief.prefers_longer.value, brief.prefers_longer.n) == (1.0, 3)
    # A winner in both orders on p0, p2 and p3 (0.5 is none); on p2 the two differ.
    assert brief.same_position is not None
    assert (brief.same_position.value, brief.same_position.n) == pytest.approx((1 / 3, 3))
    assert brief.cost is not None
    assert (brief.cost.share, brief.cost.calls, brief.cost.prompt_tokens) == (0.5, 8, 80.0)
    # People say A everywhere: brief is right on two of four, kind on two and a half.
    assert brief.human["people"].value == 0.5
    assert kind.human["people"].value == 0.625
    assert found.human["people"].total is not None
    assert found.human["people"].total.value == 0.625


def test_a_call_that_several_principles_share_is_split_between_them() -> None:
    run = hand_made()
    shared = [j.model_copy(update={"calls": (*j.calls, "both")}) for j in run.judgments]
    cost = attribute(run._replace(judgments=shared, tokens={"both": (6, 2)}), {}).principles[0].cost
    assert cost is not None
    assert (cost.prompt_tokens, cost.completion_tokens, cost.share) == (3.0, 1.0, 0.5)


def test_comparisons_that_do_not_follow_from_the_judgments_are_refused() -> None:
    run = hand_made()
    with pytest.raises(SetupError, match="is A and its judgments make it tie"):
        attribute(run._replace(config=judging(tie_margin=0.3)), {})


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_has_the_value_and_about_the_ends_of_a_clustered_one(share: float) -> None:
    rng = np.random.default_rng(0)
    prompts = [str(i) for i in rng.integers(80, size=400)]
    hit_M, of_M = rng.random(400) < share, rng.random(400) < 0.5
    found = Resamples(prompts, 1).share(hit_M, of_M)
    known = clustered_share(hit_M[of_M], [p for p, of in zip(prompts, of_M, strict=True) if of], 2)
    assert found is not None
    assert (found.value, found.n, found.clusters) == (known.value, known.n, known.clusters)
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=0.02)
    assert Resamples(prompts, 1).share(hit_M, np.full(400, False)) is None


def test_the_interval_of_a_correlation_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    clusters = [str(i // 4) for i in range(240)]
    covered = 0
    for seed in range(60):
        x_M = rng.normal(size=240)
        found = Resamples(clusters, seed).correlation(x_M, 0.6 * x_M + 0.8 * rng.normal(size=240))
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.6 <= found.high
    assert covered >= 52


def test_two_identical_texts_say_nothing_of_how_principles_vote() -> None:
    made = prompts_and_pairs(2, 2, lambda i, k: "same" if i else "x" * (k + 1))
    run = asked(constitution({"id": "one"}, {"id": "two"}), judging(), lambda *_: 0.9, made)
    (both,) = attribute(run, {}).together
    assert (both.votes, both.decided) == (1, 1)
    one = attribute(run, {}).principles[0]
    assert (one.asked, one.votes) == (2, 2)
    assert one.same_position is not None
    assert one.same_position.n == 1


def planted(seed: int, prompts: int = 150, left_out: Sequence[str] = ()) -> Labelled:
    """Principles of which three are planted: `ruler` outweighs all and is sure of itself, `echo`
    says what `fair` says, `contrary` wants the worse response, and the rest are honest work."""
    rng = random.Random(seed)
    of = constitution(
        {"id": "fair"},
        {"id": "ruler", "weight": 3.0},
        {"id": "clear"},
        {"id": "echo"},
        {"id": "warm"},
        {"id": "contrary"},
    )
    made = prompts_and_pairs(prompts, 3)
    votes: dict[tuple[str, str], float] = {}
    for pair in made[2]:
        quality = rng.gauss(0, 1)
        for i in ("fair", "clear", "warm"):
            votes[pair.id, i] = _bounded(0.5 + 0.18 * (quality + rng.gauss(0, 1)))
        votes[pair.id, "contrary"] = _bounded(0.5 - 0.18 * (quality + rng.gauss(0, 1)))
        votes[pair.id, "echo"] = _bounded(votes[pair.id, "fair"] + rng.gauss(0, 0.03))
        sure = quality + rng.gauss(0, 1.5)
        # It leaves one pair in eight to the others.
        votes[pair.id, "ruler"] = 0.5 if rng.random() < 0.125 else 0.97 if sure > 0 else 0.03
    of = without(of, *left_out)
    return asked(of, judging(), lambda _, pair, i, __: votes[pair, i], made, seed)


def _bounded(p: float) -> float:
    return min(max(p, 0.02), 0.98)


@pytest.mark.parametrize("seed", range(6))
def test_a_planted_ruler_an_echo_and_a_contrarian_are_named_and_nothing_else(seed: int) -> None:
    found = attribute(planted(seed), {})
    named = {(f.kind, f.principle) for f in found.findings}
    assert ("dominating", "ruler") in named
    assert ("contrarian", "contrary") in named
    (redundant,) = [f for f in found.findings if f.kind == "redundant"]
    assert {redundant.principle, redundant.other} == {"fair", "echo"}
    assert len(found.findings) == 3
    said = "\n".join(sentences(found))
    for words in ("ruler dominates", "contrary is contrarian", "is redundant"):
        assert words in said


def test_principles_without_a_plant_give_no_finding() -> None:
    found = attribute(planted(3, left_out=("ruler", "echo", "contrary")), {})
    assert found.findings == ()
    assert "No principle is dominating, redundant, contrarian or dead." in sentences(found)


def test_twins_of_equal_weight_are_redundant_if_one_takes_over_the_others_weight() -> None:
    votes: dict[tuple[str, str], float] = {}
    made = prompts_and_pairs(60, 3)
    rng = random.Random(5)
    for pair in made[2]:
        votes[pair.id, "one"] = votes[pair.id, "twin"] = rng.random()
        votes[pair.id, "third"] = rng.random()
    of = constitution({"id": "one"}, {"id": "twin"}, {"id": "third"})
    run = asked(of, judging(), lambda _, pair, i, __: votes[pair, i], made)
    found = attribute(run, {})
    (twin,) = found.findings
    assert twin.changed is not None
    assert (twin.kind, twin.principle, twin.other, twin.takes_weight) == (
        "redundant",
        "twin",
        "one",
        True,
    )
    # Dropped by itself it would have changed more labels than a redundant one may.
    assert found.principles[1].flip_rate.value > 0.02
    assert twin.changed.value == 0.0
    assert "and one takes over its weight" in "\n".join(sentences(found))


@pytest.mark.parametrize(
    ("changes", "vote", "why"),
    [
        ({}, 0.5, "always level"),
        ({"weight": 0.0}, 0.1, "weight is 0"),
        ({"applies_when": "'never' in tags"}, 0.1, "applies to none"),
        ({}, None, "never got a vote"),
        ({"weight": 0.01}, 0.1, "the same without it"),
    ],
)
def test_a_principle_on_which_no_label_hangs_is_dead(
    changes: dict[str, Any], vote: float | None, why: str
) -> None:
    made = prompts_and_pairs(20, 3)
    rng = random.Random(1)
    lead = {pair.id: rng.choice((0.1, 0.9)) for pair in made[2]}
    of = constitution({"id": "lead"}, {"id": "idle", **changes})
    run = asked(of, judging(), lambda _, pair, i, __: lead[pair] if i == "lead" else vote, made)
    found = attribute(run, {})
    assert Finding(kind="dead", principle="idle") in found.findings
    assert any("idle is dead" in said and why in said for said in sentences(found))
    assert found.smaller is not None
    assert found.smaller.dropped == ("idle",)


def test_with_too_few_pairs_nothing_is_said_of_anyone() -> None:
    found = attribute(hand_made(), {})
    assert found.findings == ()
    assert found.smaller is None
    assert any("Too few to tell" in said and "4 labels" in said for said in sentences(found))


def test_a_smaller_constitution_drops_the_costlier_of_two_that_change_nothing() -> None:
    made = prompts_and_pairs(20, 3)
    rng = random.Random(2)
    lead = {pair.id: rng.choice((0.1, 0.9)) for pair in made[2]}
    of = constitution({"id": "costly"}, {"id": "lead"}, {"id": "cheap"})
    run = asked(of, judging(), lambda _, pair, i, __: lead[pair] if i == "lead" else 0.5, made)
    tokens = {call: (90 if ":costly:" in call else 5, 0) for call in run.tokens}
    found = attribute(run._replace(tokens=tokens), {}).smaller
    assert found is not None
    assert found.dropped == ("costly", "cheap")
    assert found.kept == ("lead",)
    assert found.tokens_saved == pytest.approx(0.95)
    assert found.changed.value == 0.0


def test_the_page_shows_both_matrices_and_escapes_what_a_principle_says(tmp_path: Path) -> None:
    run = hand_made()
    text = "<script>alert(1)</script>"
    of = run.constitution.model_copy(
        update={
            "principles": tuple(
                p.model_copy(update={"text": text}) for p in run.constitution.principles
            )
        }
    )
    found = attribute(run._replace(constitution=of), {"<people>": []})
    page = render_attribution(found)
    assert text not in page
    assert "&lt;script&gt;" in page
    assert page.count("<svg") == 2
    assert f"correlate with another's at {ALIKE:g} or more" in page.replace("&#39;", "'")
    write_attribution(found, tmp_path)
    kept = (tmp_path / "attribution.json").read_text(encoding="utf-8")
    assert Attribution.model_validate_json(kept) == found


# Runs of the recipe, from prompts to labels.

SMALL = ("sample.limit=4", "sample.k=3", "sample.max_tokens=60")
TIERS = """\
- {id: second, tier: 2, text: Be kind.}
- {id: first, text: Be short.}
"""
TAGGED = """\
- text: Be short.
- {text: Be plain., applies_when: "'even' in tags"}
"""


def labelled(out: Path, *changes: str) -> Path:
    config, directory = load_run("smoke", [*SMALL, *changes], out)
    execute(config, directory, ("sample", "certify", "judge"), reconfigure=False)
    return directory


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("judge.panel=[{model: fake/longer}, {model: 'fake/faulty?rate=0.4', mode: structured}]",),
        ("judge.cascade={model: fake/longer, margin: 0.1}",),
        ("judge.panel=[{model: fake/first}]", "judge.cascade={model: fake/longer}"),
        ("judge.principles=tiers", "judge.constitution=tiers.yaml"),
        ("judge.principles=sample", "judge.constitution=harmless"),
        ("judge.both_orders=false",),
        ("judge.mode=score",),
        ("judge.mode=critique", "judge.constitution=tagged.yaml", "sample.prompts=tagged.jsonl"),
    ],
    ids=(
        "plain",
        "panel",
        "cascade",
        "both",
        "tiers",
        "sample",
        "one order",
        "single",
        "applies_when",
    ),
)
def test_a_stored_run_recounted_is_the_stored_run(
    changes: tuple[str, ...], empty_place: Path
) -> None:
    Path("tiers.yaml").write_text(TIERS)
    Path("tagged.yaml").write_text(TAGGED)
    rows = [{"prompt": f"Say {i}.", "tags": ["odd" if i % 2 else "even"]} for i in range(4)]
    Path("tagged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read_run(labelled(empty_place / "out", *changes, "judge.max_unscored=1"))
    assert run.comparisons == read_jsonl(empty_place / "out" / "comparisons.jsonl", Comparison)
    # It refuses comparisons that are not those that the judgments make.
    found = attribute(run, {})
    assert sum(p.cost.share for p in found.principles if p.cost) == pytest.approx(1.0)


def test_a_report_is_written_from_what_is_stored_and_leaves_the_store_alone(
    empty_place: Path,
) -> None:
    out = labelled(empty_place / "out", "judge.gate={gold: [concise], injections: 0}")
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.name.startswith("calls")}
    said = report_run(out, None)
    assert said[-1] == f"attribution: {out / 'attribution.html'}"
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.name.startswith("calls")} == before
    kept = (out / "attribution.json").read_text(encoding="utf-8")
    found = Attribution.model_validate_json(kept)
    certificate = json.loads((out / "certificate.json").read_text(encoding="utf-8"))
    total = found.human["gold pairs"].total
    assert total is not None
    assert total.model_dump() == certificate["figures"]["all"]["accuracy"]
    # The same again gives the same bytes.
    report_run(out, None)
    assert (out / "attribution.json").read_text(encoding="utf-8") == kept


def test_without_its_call_store_a_run_has_no_costs_and_gets_no_store(empty_place: Path) -> None:
    out = labelled(empty_place / "out")
    (out / "calls.sqlite").unlink()
    report_run(out, None)
    found = json.loads((out / "attribution.json").read_text(encoding="utf-8"))
    assert [p["cost"] for p in found["principles"]] == [None, None]
    assert not (out / "calls.sqlite").exists()


def test_gold_that_was_asked_in_another_way_is_not_held_against_the_labels(
    empty_place: Path,
) -> None:
    out = labelled(empty_place / "out", "judge.gate={gold: [concise], injections: 0}")
    path = out / "certificate.json"
    path.write_text(path.read_text().replace(json.loads(path.read_text())["way"], "0" * 64))
    report_run(out, None)
    assert json.loads((out / "attribution.json").read_text())["human"] == {}


def test_a_suggested_constitution_is_a_file_that_can_be_read(empty_place: Path) -> None:
    out = labelled(empty_place / "out", "sample.limit=12", "sample.k=4")
    said = "\n".join(report_run(out, None))
    assert "suggested.yaml keeps" in said
    found = json.loads((out / "attribution.json").read_text())["smaller"]
    suggested, _ = load_constitution(str(out / "suggested.yaml"))
    assert [p.id for p in suggested.principles] == found["kept"]


def test_a_constitution_that_has_changed_since_is_refused_with_both_hashes(
    empty_place: Path,
) -> None:
    file = Path("mine.yaml")
    file.write_text("- Be short.\n")
    out = labelled(empty_place / "out", "judge.constitution=mine.yaml")
    was = load_constitution("mine.yaml")[0].hash[:12]
    file.write_text("- Be very short.\n")
    now = load_constitution("mine.yaml")[0].hash[:12]
    with pytest.raises(SetupError) as e:
        report_run(out, None)
    assert str(e.value).startswith(f"mine.yaml: has changed since the run: its hash is {now}")
    assert was in str(e.value)
    file.unlink()
    with pytest.raises(SetupError, match=f"the labels follow mine 0 \\({was}\\)"):
        report_run(out, None)


def test_a_folder_without_labels_is_refused(empty_place: Path) -> None:
    with pytest.raises(SetupError, match="holds no run"):
        report_run(empty_place, None)
    config, out = load_run("smoke", SMALL, empty_place / "out")
    execute(config, out, ("sample",), reconfigure=False)
    with pytest.raises(SetupError, match="holds no labels"):
        report_run(out, None)
    execute(config, out, ("judge",), reconfigure=False)
    with (out / "responses.jsonl").open("a") as f:
        f.write("\n")
    with pytest.raises(SetupError, match="is not what the labels were made of"):
        report_run(out, None)


def test_peoples_labels_are_read_by_comparison_or_by_both_responses(tmp_path: Path) -> None:
    comparisons = hand_made().comparisons
    rows = [
        {"comparison_id": "p0/0|p0/1", "p_first": 1},
        {"comparison_id": "p0/0|p0/1", "p_first": 0.25},
        {"first": "p1/1", "second": "p1/0", "p_first": 0.9},
        {"first": "p2/0", "second": "p2/1", "p_first": 0.5},
    ]
    path = tmp_path / "people.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {c.id: p for c, p in read_human(path, comparisons)}
    assert found == {"p0/0|p0/1": 1.0, "p1/0|p1/1": 0.0, "p2/0|p2/1": 0.5}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"comparison_id": "p0/0|p0/7", "p_first": 1}', "did you mean 'p0/0|p0/1'?"),
        ('{"first": "p0/0", "p_first": 1}', "by comparison_id, or by first and second"),
        ('{"comparison_id": "p0/0|p0/1", "p_first": 2}', "p_first"),
        ("{", "Invalid JSON"),
    ],
)
def test_a_row_of_peoples_labels_that_fits_nothing_is_refused(
    row: str, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "people.jsonl"
    path.write_text(f'{{"comparison_id": "p0/0|p0/1", "p_first": 1}}\n{row}\n')
    with pytest.raises(SetupError) as e:
        read_human(path, hand_made().comparisons)
    assert str(e.value).startswith(f"{path}:2: ")
    assert says in str(e.value)


def test_tokens_are_read_while_another_process_still_writes(empty_place: Path) -> None:
    out = labelled(empty_place / "out")
    with CallStore(out / "calls.sqlite") as store:
        store.put(
            chat_request(),
            ChatReply(
                choices=(Choice(text="A", finish_reason="stop"),),
                prompt_tokens=7,
                completion_tokens=2,
            ),
            0.1,
        )
        assert (out / "calls.sqlite-wal").is_file()
        key = call_key(chat_request())
        assert tokens_of(out / "calls.sqlite", [key, "unknown"]) == {key: (7, 2)}
    (out / "calls.sqlite").write_text("no database, but some text that is long enough to be read")
    with pytest.raises(SetupError, match="the call store cannot be read"):
        report_run(out, None)


def test_what_was_told_of_other_labels_is_taken_away(empty_place: Path) -> None:
    out = labelled(empty_place / "out")
    report_run(out, None)
    config, _ = load_run(None, [], out)
    execute(config, out, ("judge",), reconfigure=False)
    assert (out / "attribution.json").is_file()
    config, _ = load_run(None, ["judge.model=fake/longer"], out)
    execute(config, out, ("judge",), reconfigure=True)
    assert not list(out.glob("attribution.*"))
