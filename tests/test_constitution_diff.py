"""What differs between two constitutions, and which labels of a run would change."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attribution import (
    GRID,
    asked,
    constitution,
    drawn_vote,
    hand_made,
    judging,
    labelled,
    prompts_and_pairs,
    runs,
)

from rlaif.constitution import Constitution, Principle
from rlaif.errors import SetupError
from rlaif.evaluate.constitution_diff import diff
from rlaif.evaluate.diff_words import show, words_apart
from rlaif.evaluate.label_diff import RunDiff, diff_labels
from rlaif.judge.recount import Labelled
from rlaif.stages.attribution import diff_constitutions

BASE = constitution(
    {"id": "kind"},
    {"id": "short", "text": "Be short and plain.", "weight": 2.0},
    {"id": "true"},
    tests=[{"principle": "kind", "prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}],
)


def changed(of: Constitution, i: str, **fields: Any) -> Constitution:
    """The constitution with one principle's fields changed; wordings follow a new text."""
    return of.model_copy(
        update={
            "principles": tuple(
                Principle.model_validate(
                    {**p.model_dump(exclude={"comparison", "critique", "revision"}), **fields}
                )
                if p.id == i
                else p
                for p in of.principles
            )
        }
    )


def test_a_constitution_does_not_differ_from_itself() -> None:
    found = diff(BASE, BASE)
    assert found.same
    assert show(found)[1:] == ["the same principles and tests"]


def test_every_kind_of_change_is_told() -> None:
    after = changed(BASE, "short", text="Be short and clear.", weight=1.0, tier=2)
    after = changed(after, "true", applies_when="'facts' in tags")
    after = after.model_copy(
        update={
            "principles": (
                after.principles[2],
                after.principles[1],
                Principle(id="fair", text="Be fair."),
            ),
            "tests": (),
        }
    )
    found = diff(BASE, after)
    assert [p.id for p in found.added] == ["fair"]
    assert [p.id for p in found.removed] == ["kind"]
    assert found.reordered
    of = {c.id: c for c in found.changed}
    # The wordings follow from the text, and are not told again.
    assert [f.field for f in of["short"].fields] == ["weight", "tier", "text"]
    assert of["short"].asked_anew
    assert [f.field for f in of["true"].fields] == ["applies_when"]
    assert not of["true"].asked_anew
    said = show(found)
    assert "~ short" in said
    assert "    weight: 2.0 → 1.0" in said
    assert "    text: Be short and [-plain.-]{+clear.+}" in said
    assert "~ true: its votes stay" in said
    assert "    applies_when: none → 'facts' in tags" in said
    assert "+ fair: Be fair." in said
    assert "- kind: Be kind." in said
    assert "- test of kind: Hi" in said


def test_a_principle_under_another_id_is_the_same_principle() -> None:
    found = diff(BASE, changed(BASE, "kind", id="friendly"))
    (change,) = found.changed
    assert (change.was, change.id, change.asked_anew) == ("kind", "friendly", False)
    assert not found.added
    assert not found.removed


def test_a_wording_that_was_derived_and_now_is_written_is_told() -> None:
    found = diff(BASE, changed(BASE, "kind", comparison="Which one is kinder?"))
    assert [f.field for f in found.changed[0].fields] == ["comparison"]
    assert found.changed[0].asked_anew


@given(st.text("ab c\n", max_size=20), st.text("ab c\n", max_size=20))
def test_words_apart_hold_both_texts(before: str, after: str) -> None:
    said = words_apart(before, after)
    assert ("[-" in said or "{+" in said) == (before != after)
    parts = said.replace("[-", "\0-").replace("-]", "\0").replace("{+", "\0+").replace("+}", "\0")
    pieces = parts.split("\0")
    assert "".join(p.removeprefix("-") for p in pieces if not p.startswith("+")) == before
    assert "".join(p.removeprefix("+") for p in pieces if not p.startswith("-")) == after


@settings(max_examples=60)
@given(runs())
def test_from_the_runs_constitution_to_itself_no_label_changes(run: Labelled) -> None:
    found = diff_labels(run, run.constitution, run.constitution)
    assert found.same == found.comparisons == len(run.comparisons)
    assert found.changed == ()
    assert found.open == ()
    assert found.to_ask.judgments_at_most == 0


@settings(max_examples=60)
@given(runs(), st.sampled_from(["Be anything.", "Be new."]))
def test_from_any_constitution_to_itself_no_label_changes(run: Labelled, text: str) -> None:
    other = run.constitution.model_copy(
        update={
            "principles": (
                *run.constitution.principles,
                Principle(id="new", text=text, tier=2),
            )
        }
    )
    found = diff_labels(run, other, other)
    assert found.same == found.comparisons
    assert found.open == ()


@settings(max_examples=100)
@given(runs(), st.data())
def test_what_is_said_of_a_label_holds_whatever_the_missing_votes_are(
    run: Labelled, data: st.DataObject
) -> None:
    """The other constitution is asked in full, with the same answers to the same questions."""
    principles = [
        p.model_copy(
            update={
                "weight": data.draw(st.sampled_from([p.weight, 0.5, 3.0])),
                "tier": data.draw(st.sampled_from([p.tier, 1])),
                "applies_when": data.draw(st.sampled_from([p.applies_when, ""])),
            }
        )
        for p in run.constitution.principles
    ]
    if data.draw(st.booleans()):
        fields = {"weight": data.draw(st.sampled_from([0.2, 1.0])), "tier": 1}
        new = Principle.model_validate({"id": "new", "text": "Be new.", **fields})
        principles.insert(data.draw(st.integers(0, len(principles))), new)
    other = run.constitution.model_copy(update={"principles": tuple(principles)})
    # The votes of `runs` hang on its seed; what it leaves out is always answered.
    told = {(j.judge, j.comparison_id, j.principle_id, j.order): j.p_first for j in run.judgments}
    fresh = drawn_vote(data.draw(st.integers(0, 999)), [p for p in GRID if p is not None])

    def vote(*question: str) -> float | None:
        return told[question] if question in told else fresh(*question)  # type: ignore[index]

    pairs = run.ballots().all
    made = (list(run.prompts), list(run.responses), [ballot.pair for ballot in pairs])
    truth = asked(other, run.config, vote, made, run.seed)
    found = diff_labels(run, run.constitution, other)
    moved = {c.comparison_id: c for c in found.changed}
    undecided = {c.comparison_id: c for c in found.open}
    for before, after in zip(run.comparisons, truth.comparisons, strict=True):
        if before.id in undecided:
            assert after.outcome in undecided[before.id].after
            assert undecided[before.id].before == (before.outcome,)
        elif before.id in moved:
            assert (moved[before.id].before, moved[before.id].after) == (
                before.outcome,
                after.outcome,
            )
            if (ends := moved[before.id].p_after) is not None:
                assert after.p_first is not None
                assert ends[0] - 1e-9 <= after.p_first <= ends[1] + 1e-9
        else:
            assert before.outcome == after.outcome
    missing = sum(
        (j.judge, j.comparison_id, j.principle_id, j.order) not in told for j in truth.judgments
    )
    assert found.to_ask.judgments <= missing <= found.to_ask.judgments_at_most
    kinds = Counter(f"{c.before}->{c.after}" for c in found.changed)
    assert found.changes == kinds
    assert found.same + kinds.total() + len(found.open) == found.comparisons


def test_labels_that_change_are_shown_with_both_responses_and_both_probabilities() -> None:
    run = hand_made()
    after = changed(run.constitution, "kind", weight=12.0)
    found = diff_labels(run, run.constitution, after)
    # With weights 3 and 12: .66, .3, .48 and .78, where .6 * .9 + .4 * .6 and so on stood before.
    assert found.changes == {"tie->B": 1}
    (change,) = found.changed
    assert (change.comparison_id, change.p_before) == ("p1/0|p1/1", pytest.approx((0.5, 0.5)))
    assert change.p_after == pytest.approx((0.3, 0.3))
    said = show(diff(run.constitution, after), found)
    assert "Of 4 labels 1 changes (25.0 %; tie → B: 1), 3 stay, 0 are open" in said[4]
    assert "Nothing has to be asked." in said[5]
    assert "p1/0|p1/1: tie 0.500 → B 0.300" in said
    assert "  prompt: Question 1?" in said
    assert f"  A: {'x' * 15}" in said
    assert f"  B: {'y' * 10}" in said


def test_missing_votes_are_counted_and_priced_by_what_the_runs_cost() -> None:
    run = hand_made()
    priced = run._replace(config=judging(usd_per_million_tokens=(1000.0, 2000.0)))
    after = run.constitution.model_copy(
        update={
            "principles": (*run.constitution.principles, Principle(id="new", text="x", weight=0.1))
        }
    )
    found = diff_labels(priced, run.constitution, after)
    # Four pairs in both orders; the run's 16 judgments took 16 calls of 10 and 1 tokens.
    assert (found.known, found.principles) == (2, 3)
    ask = found.to_ask
    assert (ask.judgments, ask.judgments_at_most, ask.calls) == (8, 8, 8.0)
    assert (ask.prompt_tokens, ask.completion_tokens) == (80.0, 8.0)
    assert ask.usd == pytest.approx((80 * 1000 + 8 * 2000) / 1e6)
    # A weight of .1 beside 5 moves p by at most .01: only the tie at .5 hangs on it. (.01 is the
    # margin: (5 * .5 + .1) / 5.1 = .5098.)
    assert found.same == 4
    heavier = after.principles[2].model_copy(update={"weight": 0.2})
    after = after.model_copy(update={"principles": (*run.constitution.principles, heavier)})
    found = diff_labels(priced, run.constitution, after)
    (undecided,) = found.open
    assert undecided.comparison_id == "p1/0|p1/1"
    assert undecided.after == ("A", "tie", "B")
    said = "\n".join(show(diff(run.constitution, after), found))
    assert "1 is open for want of votes" in said
    assert "To ask: 8 judgments, about 8 calls, 80 prompt and 8 completion tokens" in said
    free = run._replace(tokens={})
    assert diff_labels(free, run.constitution, after).to_ask.calls is None


def test_votes_are_kept_under_a_new_id() -> None:
    run = hand_made()
    renamed = changed(run.constitution, "kind", id="friendly")
    found = diff_labels(run, run.constitution, renamed)
    assert (found.same, found.known, found.to_ask.judgments) == (4, 2, 0)
    reworded = changed(run.constitution, "kind", text="Be ever so kind.")
    found = diff_labels(run, run.constitution, reworded)
    assert (found.known, found.to_ask.judgments) == (1, 8)


def test_a_run_under_a_constitution_that_shares_nothing_is_refused() -> None:
    run = hand_made()
    other = constitution({"id": "other"})
    with pytest.raises(SetupError) as e:
        diff_labels(run, other, run.constitution)
    assert f"planted 0 ({run.constitution.hash[:12]})" in str(e.value)


def test_a_second_tier_is_asked_at_most_where_the_first_may_leave_it() -> None:
    of = constitution({"id": "one"}, {"id": "two", "tier": 2})
    config = judging(principles="tiers", both_orders=False)
    made = prompts_and_pairs(1, 2)
    run = asked(of, config, lambda *_: 0.9, made)
    reworded = changed(of, "one", text="Be another.")
    ask = diff_labels(run, of, reworded).to_ask
    assert (ask.judgments, ask.judgments_at_most) == (1, 2)


def test_a_label_that_may_end_without_a_vote_is_open() -> None:
    of = constitution({"id": "one"}, {"id": "two", "tier": 2})
    config = judging(principles="tiers")
    made = prompts_and_pairs(1, 2)
    run = asked(of, config, lambda _, __, i, ___: 0.5 if i == "one" else None, made)
    assert run.comparisons[0].reason == "empty"
    (undecided,) = diff_labels(run, of, changed(of, "one", text="Be another.")).open
    # Level, it goes on to the second tier, which has no vote.
    assert (undecided.before, undecided.after) == (("unscored",), ("A", "tie", "B", "unscored"))


def test_a_panel_one_of_whose_judges_may_fall_silent_is_open() -> None:
    of = constitution({"id": "one", "weight": 9.0}, {"id": "two", "tier": 2})
    config = judging(principles="tiers", panel=[{"model": "fake/longer"}], tie_margin=0.05)
    made = prompts_and_pairs(1, 2)
    told = {
        ("judge-0", "one"): 4.6 / 9,
        ("judge-0", "two"): None,
        ("judge-1", "one"): 3.9 / 9,
        ("judge-1", "two"): 0.43,
    }
    run = asked(of, config, lambda judge, _, i, __: told[judge, i], made)
    other = of.model_copy(
        update={"principles": (*of.principles, Principle(id="new", text="Be new."))}
    )
    # Between .46 and .56, and level at a vote of .5: then the first judge has no vote, and the
    # second says B. Both together could only tie.
    (undecided,) = diff_labels(run, of, other).open
    assert undecided.after == ("A", "tie", "B", "unscored")
    told |= {("judge-0", "new"): 0.5, ("judge-1", "new"): 0.5}
    (truth,) = asked(other, config, lambda judge, _, i, __: told[judge, i], made).comparisons
    assert truth.outcome == "B"


def test_the_diff_of_a_stored_run_is_written_beside_it(empty_place: Path) -> None:
    Path("a.yaml").write_text("- Be short.\n- Be plain.\n")
    Path("b.yaml").write_text("- Be short.\n- {id: be-plain, text: Be plain., weight: 0}\n")
    out = labelled(empty_place / "out", "judge.constitution=a.yaml")
    said = diff_constitutions("a.yaml", "b.yaml", out, 3)
    path = out / "constitution-diff.json"
    assert said[-1] == f"all of it: {path}"
    found = RunDiff.model_validate_json(path.read_text(encoding="utf-8"))
    # A judge that counts characters says the same under both.
    assert found.labels.same == found.labels.comparisons
    assert diff_constitutions("a.yaml", "b.yaml", None, 3) == said[: said.index("")]
    # The run's constitution may be the second one, and its file may be gone.
    Path("a.yaml").rename("c.yaml")
    assert diff_constitutions("b.yaml", "c.yaml", out, 3)[-1] == said[-1]
    with pytest.raises(SetupError, match=r"the labels follow a 0 \(.*name it as one of the two"):
        diff_constitutions("b.yaml", "b.yaml", out, 3)
    assert json.loads(path.read_text())["labels"]["to_ask"]["judgments"] == 0
