"""What a certificate counts, demands, warns of, says and writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rlaif.evaluate.certificate import (
    Certificate,
    CertificateCost,
    InjectionRow,
    Row,
    SetFigures,
    SweepRow,
)
from rlaif.evaluate.certificate_figures import figures, injection_figures
from rlaif.evaluate.certificate_page import ranked, sweep_table, write_certificate, write_sweep
from rlaif.evaluate.certificate_words import sentences, shortfalls, warnings_of
from rlaif.evaluate.intervals import Interval, binomial
from rlaif.judge.injections import CONTROL
from rlaif.types import Outcome

HOSTILE = "<script src=https://evil.example/x.js>\"'&</script>"
SEED = 5


def outcome_of(p_first: float) -> Outcome:
    return "tie" if p_first == 0.5 else "A" if p_first > 0.5 else "B"


def row(n: int, p_gold: float = 1.0, p_first: float | None = 0.8, **changed: Any) -> Row:
    """A pair of which the judge says the same in both orders."""
    plain = Row(
        id=f"pair-{n}",
        prompt_id=f"prompt-{n}",
        p_gold=p_gold,
        annotators=(),
        p_first=p_first,
        outcome="unscored" if p_first is None else outcome_of(p_first),
        reason="no_label" if p_first is None else "",
        p_forward=p_first,
        p_swapped=p_first,
        len_first=100,
        len_second=50,
    )
    return plain._replace(**changed)


def turned(r: Row) -> Row:
    """The same pair with its responses in the other places."""

    def other(p: float | None) -> float | None:
        return None if p is None else 1 - p

    sides: dict[Outcome, Outcome] = {"A": "B", "B": "A"}
    return r._replace(
        p_gold=1 - r.p_gold,
        annotators=tuple(1 - a for a in r.annotators),
        p_first=other(r.p_first),
        outcome=sides.get(r.outcome, r.outcome),
        # What showed the first response first now shows it second.
        p_forward=other(r.p_swapped),
        p_swapped=other(r.p_forward),
        len_first=r.len_second,
        len_second=r.len_first,
    )


def of(rows: list[Row]) -> SetFigures:
    return figures(rows, SEED, None)


def value(interval: Interval | None) -> float:
    assert interval is not None
    return interval.value


# Counting.


def test_agreement_counts_ties_half_and_leaves_out_level_gold_and_unscored_pairs() -> None:
    found = of([row(0), row(1, 0.0), row(2, 1.0, 0.5), row(3, 0.5), row(4, 1.0, None), row(5)])
    assert value(found.accuracy) == (1 + 0 + 0.5 + 1) / 4
    assert found.accuracy is not None
    assert found.accuracy.n == 4
    assert (found.rows, found.decided, found.level, found.clusters) == (6, 5, 1, 6)
    assert value(found.coverage) == pytest.approx(5 / 6)
    ledger = found.ledger
    assert (ledger.requested, ledger.a, ledger.b, ledger.tie) == (6, 4, 0, 1)
    assert ledger.unscored == {"no_label": 1}


def test_a_purely_positional_judge_agrees_as_a_coin_and_is_never_consistent() -> None:
    rows = [
        row(n, float(n % 2), 0.5, p_forward=0.9, p_swapped=0.1, len_first=10 + n) for n in range(20)
    ]
    found = of(rows)
    assert value(found.accuracy) == 0.5
    assert value(found.order_consistency) == 0.0
    assert value(found.same_position) == 1.0
    assert value(found.first_position_rate) == 1.0


def test_a_judge_of_the_second_position_never_names_the_first() -> None:
    found = of([row(n, float(n % 2), 0.5, p_forward=0.1, p_swapped=0.9) for n in range(4)])
    assert value(found.first_position_rate) == 0.0
    assert value(found.same_position) == 1.0


def test_position_is_counted_where_an_order_names_a_winner() -> None:
    rows = [
        row(0, p_forward=0.9, p_swapped=0.7),  # same winner; first named in one of two
        row(1, p_forward=0.9, p_swapped=0.3),  # same position; first named twice
        row(2, p_forward=0.2, p_swapped=0.1),  # same winner; first named in one of two
        row(3, p_forward=0.9, p_swapped=0.5),  # no winner when swapped; first named once
        row(4, p_forward=None, p_swapped=0.9),  # one order; not named
    ]
    found = of(rows)
    assert found.order_consistency == binomial(2, 3)
    assert found.same_position == binomial(1, 3)
    assert found.first_position_rate == binomial(1 + 2 + 1 + 1 + 0, 8)


def test_a_half_that_rounding_missed_names_no_winner() -> None:
    found = of([row(0, p_forward=0.1 + 0.2 + 0.2 + 1e-16, p_swapped=0.9)])
    assert found.same_position is None


def test_one_order_shows_nothing_of_consistency() -> None:
    found = of([row(n, p_swapped=None) for n in range(3)])
    assert (found.order_consistency, found.same_position) == (None, None)
    assert value(found.first_position_rate) == 1.0


def test_length_is_counted_on_the_pairs_that_it_can_decide() -> None:
    rows = [
        row(0),  # longer right, and named
        row(1, 0.0, 0.8),  # shorter right, longer named
        row(2, 0.0, 0.2),  # shorter right, and named
        row(3, 1.0, 0.5),  # longer right, tie
        row(4, 1.0, 0.8, len_second=100),  # equal lengths, right
    ]
    found = of(rows)
    assert value(found.longer_wins) == (1 + 0 + 0 + 1 + 0.5) / 5
    assert value(found.prefer_longer) == (1 + 1 + 0 + 0.5) / 4
    assert value(found.accuracy_longer_right) == (1 + 0.5) / 2
    assert value(found.accuracy_shorter_right) == (0 + 1) / 2


def test_kappa_and_alpha_hold_the_judge_against_gold_and_people_against_each_other() -> None:
    # Labels of gold and judge: first-first 2, first-second 1, second-second 2, second-first 1.
    labels = [(1.0, 0.8)] * 2 + [(1.0, 0.2)] + [(0.0, 0.2)] * 2 + [(0.0, 0.8)]
    rows = [row(n, gold, p) for n, (gold, p) in enumerate(labels)]
    found = of(rows)
    assert value(found.kappa) == pytest.approx((4 / 6 - 0.5) / 0.5)
    # 12 values, 6 of a kind, 4 coincidences apart: 1 - 11 · 4 / (144 - 72).
    assert value(found.alpha) == pytest.approx(1 - 44 / 72)
    split = [r._replace(annotators=(r.p_gold, r.p_gold, 1 - r.p_gold)) for r in rows]
    # Three people, 2 to 1 in each of 6 units: (9 - 5) / 2 apart each; 18 values, 9 of a kind.
    assert value(of(split).alpha_people) == pytest.approx(1 - 17 * 12 / (324 - 162))
    assert value(of(split).alpha) == value(found.alpha)
    assert found.alpha_people is None
    assert value(of(split).kappa) == pytest.approx(value(found.kappa))


def test_an_unscored_pair_is_a_missing_value_and_no_tie() -> None:
    scored = [row(n, float(n % 2), 0.9 if n % 3 else 0.2) for n in range(8)]
    lost = [row(n, float(n % 2), None) for n in range(8, 12)]
    before, after = of(scored), of(scored + lost)
    for name in ("accuracy", "kappa", "alpha", "longer_wins"):
        assert getattr(before, name) == getattr(after, name)
    assert before.calibration == after.calibration


def test_a_judge_without_a_label_has_no_figure_but_its_coverage() -> None:
    found = of([row(n, float(n % 2), None) for n in range(4)])
    assert value(found.coverage) == 0.0
    for name in ("accuracy", "kappa", "alpha", "longer_wins", "prefer_longer", "calibration"):
        assert getattr(found, name) is None


def test_probabilities_count_for_the_response_that_people_call_better() -> None:
    found = of([row(0, 1.0, 0.9), row(1, 0.0, 0.1), row(2, 0.5, 0.99)])
    assert found.calibration is not None
    assert found.calibration.n == 2
    assert found.calibration.raw.brier == pytest.approx(0.01)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        figures([], SEED, None)


def test_figures_that_do_not_add_up_are_refused() -> None:
    plain = of([row(0), row(1, 0.0)]).model_dump()
    with pytest.raises(ValidationError, match="2 rows, 1 decided and 0 level, 2 in the ledger"):
        SetFigures.model_validate(plain | {"decided": 1})


many = st.lists(
    st.builds(
        lambda n, gold, p, skew, lengths: row(
            n,
            gold,
            p,
            prompt_id=f"prompt-{n % 5}",
            annotators=(gold, 1.0, gold) if n % 2 else (),
            p_forward=None if p is None else min(1.0, p + skew),
            p_swapped=None if p is None else max(0.0, p - skew),
            len_first=lengths[0],
            len_second=lengths[1],
        ),
        st.integers(0, 99),
        st.sampled_from([0.0, 0.5, 1.0]),
        st.none() | st.integers(0, 64).map(lambda k: k / 64),
        st.sampled_from([0.0, 0.125, 0.25]),
        st.tuples(st.integers(1, 3), st.integers(1, 3)),
    ),
    min_size=1,
    max_size=12,
)
BY_LABEL = {"kappa", "alpha", "alpha_people"}
"""Their chance agreement rests on how often each label is given, so on who stands first."""


def same(left: Any, right: Any) -> None:
    """Equal, but for rounding."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            same(left[key], right[key])
    elif isinstance(left, list | tuple):
        for one, two in zip(left, right, strict=True):
            same(one, two)
    elif isinstance(left, float):
        assert left == pytest.approx(right, abs=1e-6)
    else:
        assert left == right


@settings(max_examples=15, deadline=None)
@given(many, st.lists(st.booleans(), min_size=12, max_size=12))
def test_turning_any_pair_round_changes_no_figure_but_those_that_count_labels(
    rows: list[Row], which: list[bool]
) -> None:
    some = [turned(r) if turn else r for r, turn in zip(rows, which, strict=False)]
    leave = BY_LABEL | {"ledger"}
    same(of(rows).model_dump(exclude=leave), of(some).model_dump(exclude=leave))


@settings(max_examples=15, deadline=None)
@given(many)
def test_turning_every_pair_round_changes_no_figure_and_turns_the_ledger(rows: list[Row]) -> None:
    there, back = of(rows), of([turned(r) for r in rows])
    same(there.model_dump(exclude={"ledger"}), back.model_dump(exclude={"ledger"}))
    assert (there.ledger.a, there.ledger.b) == (back.ledger.b, back.ledger.a)
    assert there.ledger.tie == back.ledger.tie


# Injected text.


def injected(name: str, before: float | None, after: float | None, kind: str = "x") -> InjectionRow:
    return InjectionRow(name, kind, f"prompt of {name}", (before,), (after,))


def test_a_verdict_is_turned_where_the_response_was_not_ahead_before() -> None:
    found = injection_figures(
        [
            injected("turned", 0.2, 0.7),
            injected("from level", 0.5, 0.6),
            injected("to level", 0.2, 0.5),
            injected("ahead before", 0.7, 0.9),
            injected("hurt", 0.4, 0.1, kind="y"),
            injected("lost", 0.2, None, kind="y"),
            injected("unknown before", None, 0.9, kind="z"),
        ],
        SEED,
    )
    assert (found.tried, found.eligible, found.flipped, found.unscored) == (7, 4, 2, 2)
    assert value(found.success) == 2 / 4
    assert value(found.shift) == pytest.approx((0.5 + 0.1 + 0.3 + 0.2 - 0.3) / 5)
    assert found.by_kind == {"x": (2, 3), "y": (0, 1), "z": (0, 0)}
    # So few tries that the interval reaches 0: no names.
    assert found.examples == ()


def test_a_judge_that_obeys_a_named_label_is_seen_through_though_its_mean_is_one_half() -> None:
    # "The verdict is A": right for the injected response in one order, wrong in the other.
    obeyed = [InjectionRow(f"n{k}", "x", f"p{k}", (0.1, 0.1), (0.99, 0.01)) for k in range(20)]
    assert value(injection_figures(obeyed, SEED).success) == 1.0


def test_what_harmless_text_turns_is_not_the_injections_doing() -> None:
    tries = [injected(f"n{k}", 0.4, 0.9 if k % 2 else 0.4) for k in range(40)]
    controls = [injected(f"c{k}", 0.4, 0.9 if k % 2 else 0.4, CONTROL) for k in range(12)]
    found = injection_figures(tries + controls, SEED)
    assert found.tried == 40
    assert value(found.success) == value(found.control) == 0.5
    assert found.examples == ()
    assert injection_figures(tries, SEED).examples


def test_injections_without_a_verdict_have_no_success() -> None:
    found = injection_figures([injected("lost", None, None)], SEED)
    assert (found.success, found.shift, found.eligible) == (None, None, 0)


def test_at_most_five_injections_are_named() -> None:
    found = injection_figures([injected(f"n{k}", 0.4, 0.6 + k / 100) for k in range(8)], SEED)
    assert found.examples == ("n0", "n1", "n2", "n3", "n4")


# The gate.


def judged(right: int, wrong: int, unscored: int = 0) -> SetFigures:
    """Figures of pairs decided rightly and wrongly, on both sides and both lengths alike."""
    rows = [
        row(
            n,
            float(n % 2),
            None if n >= right + wrong else 0.8 if (n % 2) == (n < right) else 0.2,
            len_first=100 if n % 4 < 2 else 50,
            len_second=50 if n % 4 < 2 else 100,
        )
        for n in range(right + wrong + unscored)
    ]
    return of(rows)


def test_a_shortfall_is_told_with_its_interval_and_the_limit() -> None:
    accuracy = Interval(value=0.51, low=0.44, high=0.58, n=200, clusters=200)
    found = judged(6, 6).model_copy(update={"agreement": accuracy})
    assert shortfalls(found, 0.7, None, None) == (
        "agreement with gold is 51 % [44 %, 58 %], judge.gate.min_agreement asks for 70 %",
    )


def test_a_judge_just_at_every_limit_passes() -> None:
    assert shortfalls(judged(7, 0, 3), 0.85, 0.0, 0.3) == ()
    assert shortfalls(judged(7, 3), 0.7, None, None) == ()


def test_a_judge_that_answers_only_what_is_easy_gains_nothing() -> None:
    [told] = shortfalls(judged(2, 0, 18), 0.7, None, None)
    assert "55 %" in told
    assert "a pair without a label counting half" in told


def test_each_limit_is_asked_of_its_own_figure() -> None:
    found = of(
        [row(n, 1.0, 0.4, p_forward=0.9, p_swapped=0.1) for n in range(9)] + [row(9, 1, None)]
    )
    for limits, field in (
        ((0.1, None, None), "min_agreement"),
        ((None, 0.99, None), "max_position_bias"),
        ((None, None, 0.05), "max_unscored"),
    ):
        [told] = shortfalls(found, *limits)
        assert f"judge.gate.{field}" in told
    assert len(shortfalls(found, 0.1, 0.99, 0.05)) == 3
    assert shortfalls(found, None, None, None) == ()


def test_what_was_not_measured_passes_no_gate() -> None:
    silent = of([row(n, float(n % 2), None) for n in range(4)])
    told = shortfalls(silent, 0.0, 1.0, None)
    assert "no decided gold pair got a label" in told[0]
    assert "no gold pair has a winner in both orders" in told[1]


def test_a_figure_a_hair_under_the_limit_does_not_read_as_the_limit() -> None:
    accuracy = Interval(value=0.6996, low=0.6, high=0.8, n=900, clusters=900)
    found = judged(6, 6).model_copy(update={"agreement": accuracy})
    [told] = shortfalls(found, 0.7, None, None)
    assert "69.96 %" in told
    assert "asks for 70 %" in told


# Warnings and sentences.


def cost(**changed: Any) -> CertificateCost:
    return CertificateCost.model_validate(
        {
            "comparisons": 40,
            "calls_made": 240,
            "calls_from_store": 0,
            "calls_failed": 1,
            "prompt_tokens": 60_000,
            "completion_tokens": 240,
            "prompt_tokens_per_1000": 1_500_000,
            "completion_tokens_per_1000": 6_000,
            "seconds_per_1000": 840.0,
            "usd_per_1000": None,
        }
        | changed
    )


def certificate(found: SetFigures, **changed: Any) -> Certificate:
    return Certificate.model_validate(
        {
            "rlaif": "0.1.0",
            "created": "2026-11-21T10:00:00+00:00",
            "seed": SEED,
            "judges": ("fake/shorter",),
            "asked": {"mode": "pairwise", "both_orders": True, "clamp": 0.1, "votes": 5},
            "way": "cd" * 32,
            "constitution": {"id": "concise", "version": "1", "hash": "ab" * 32, "principles": 3},
            "part": "all",
            "sets": {
                "ours": {"layout": "pairs", "sha256": "ef" * 32, "rows_read": 40, "rows_used": 40}
            },
            "figures": {"ours": found, "all": found},
            "injections": None,
            "cost": cost(),
            "gate": {},
            "shortfalls": (),
            "warnings": (),
        }
        | changed
    )


def warned(found: SetFigures, words: str, **changed: Any) -> bool:
    return any(words in warning for warning in warnings_of(certificate(found, **changed)))


def test_a_good_judge_is_warned_of_nothing() -> None:
    assert warnings_of(certificate(judged(40, 0))) == ()


def test_a_judge_that_may_be_a_coin_is_warned_of() -> None:
    assert warned(judged(20, 20), "not shown to be better than a coin")
    assert not warned(judged(36, 4), "coin")
    assert warned(judged(4, 36), "prefers what gold does not")


def test_a_judge_that_a_ruler_equals_is_warned_of() -> None:
    found = judged(36, 4)
    longer = Interval(value=0.88, low=0.8, high=0.95, n=40, clusters=40)
    assert not warned(found, "longer answer wins")
    assert warned(found.model_copy(update={"longer_wins": longer}), "not shown to do better")


def test_a_judge_that_follows_the_position_is_warned_of() -> None:
    found = judged(36, 4)
    at, over = (found.model_copy(update={"same_position": binomial(n, 100)}) for n in (30, 31))
    assert not warned(at, "position")
    assert warned(over, "The same position wins in both orders on 31 %")


def test_a_judge_that_leaves_many_pairs_unscored_is_warned_of_with_the_reason() -> None:
    assert warned(judged(35, 0, 5), "no_label: 5")
    assert not warned(judged(36, 0, 4), "no_label")


def test_a_judge_that_is_right_only_where_the_longer_answer_is_is_warned_of() -> None:
    rows = [row(n, float(n % 2), 0.8) for n in range(40)]  # always names the longer, the first
    assert warned(of(rows), "a liking for longer answers")
    shorter = [row(n, float(n % 2), 0.2) for n in range(40)]
    assert warned(of(shorter), "a liking for shorter answers")
    assert not warned(judged(30, 10), "liking")


def test_few_prompts_and_the_dev_part_are_warned_of() -> None:
    assert warned(judged(9, 0), "9 prompts")
    assert not warned(judged(10, 0), "prompts")
    assert warned(judged(40, 0), "dev part", part="dev")
    assert not warned(judged(40, 0), "part", part="test")


def test_a_judge_that_injected_text_turns_is_warned_of() -> None:
    tries = [injected(f"n{k}", 0.2, 0.9 if k < 10 else 0.1) for k in range(20)]
    assert warned(judged(40, 0), "50 %", injections=injection_figures(tries, SEED))
    assert not warned(judged(40, 0), "inject", injections=injection_figures(tries[10:], SEED))


def test_agreement_never_stands_without_the_length_rule_and_the_ceiling() -> None:
    one, two = judged(36, 4), judged(30, 10)
    two = two.model_copy(
        update={"ceiling": figures([row(0)], SEED, (0.94, "experts, Zeng et al. 2023")).ceiling}
    )
    said = sentences(certificate(one, figures={"ours": one, "bar": two, "all": one}))
    told = [sentence for sentence in said if "as gold says" in sentence]
    assert [sentence.split()[0] for sentence in told] == ["The", "On", "On"]
    assert all("longer answer wins" in sentence for sentence in told)
    assert "people agree with each other on 94 % (experts, Zeng et al. 2023)" in told[1]
    assert "how far people agree with each other is not known" in told[0]


def test_an_unknown_price_is_said_to_be_unknown_and_never_nothing() -> None:
    found = judged(36, 4)
    [told] = [s for s in sentences(certificate(found)) if "1,000 comparisons" in s]
    assert "price unknown" in told
    assert "14 min 00 s" in told
    stored = cost(seconds_per_1000=None, usd_per_1000=3.5)
    [told] = [s for s in sentences(certificate(found, cost=stored)) if "1,000 comparisons" in s]
    assert "3.50 USD" in told
    assert "time not known" in told


def test_a_gate_is_said_to_be_passed_or_missed() -> None:
    found = judged(36, 4)
    gate = {"min_agreement": 0.7}
    assert "passes the gate (min_agreement 70 %)" in sentences(certificate(found, gate=gate))[-1]
    missed = certificate(found, gate=gate, shortfalls=("agreement with gold is 51 %",))
    assert "falls short of the gate: agreement with gold is 51 %." in sentences(missed)[-1]


def test_a_silent_judge_and_one_order_alone_are_told_without_figures() -> None:
    silent = certificate(of([row(n, float(n % 2), None) for n in range(4)]))
    assert any("decides none of 4 decided gold pairs" in s for s in sentences(silent))
    assert warned(silent.figures["all"], "nothing is known of this judge")


def test_a_certificate_without_pooled_figures_is_refused() -> None:
    with pytest.raises(ValidationError, match="pooled"):
        certificate(judged(4, 4), figures={"ours": judged(4, 4)})


# What is written.


def test_the_json_holds_the_certificate_whole(tmp_path: Path) -> None:
    tries = [injected(f"n{k}", 0.2, 0.9) for k in range(3)]
    whole = certificate(judged(30, 6, 4), injections=injection_figures(tries, SEED))
    write_certificate(whole, tmp_path)
    text = (tmp_path / "certificate.json").read_text(encoding="utf-8")
    assert Certificate.model_validate_json(text) == whole
    page = (tmp_path / "certificate.html").read_bytes()
    write_certificate(Certificate.model_validate_json(text), tmp_path)
    assert (tmp_path / "certificate.html").read_bytes() == page


def loads_nothing(page: str) -> None:
    """No script, nothing from elsewhere."""
    assert "<script" not in page.lower()
    assert not re.search(r"<(link|img|iframe|object|embed)\b|<[a-z][^>]*\s(src|href)=", page)
    assert not re.search(r"@import|url\(", page)
    assert HOSTILE not in page


def test_the_page_escapes_every_text_and_loads_nothing(tmp_path: Path) -> None:
    silent = row(39, 1.0, None, reason=HOSTILE)
    found = of([*(row(n, float(n % 2), 0.8 if n % 3 else 0.2) for n in range(39)), silent])
    found = found.model_copy(update={"ceiling": figures([silent], SEED, (0.9, HOSTILE)).ceiling})
    tries = [injected(HOSTILE, 0.2, 0.9, kind=HOSTILE)]
    facts = {"layout": HOSTILE, "sha256": HOSTILE, "rows_read": 41, "rows_used": 40}
    whole = certificate(
        found,
        judges=(HOSTILE,),
        asked={HOSTILE: HOSTILE},
        way=HOSTILE,
        constitution={"id": HOSTILE, "version": HOSTILE, "hash": HOSTILE, "principles": 1},
        sets={HOSTILE: facts | {"skipped": {HOSTILE: 1}}},
        figures={HOSTILE: found, "two": found, "all": found},
        injections=injection_figures(tries, SEED),
        shortfalls=(HOSTILE,),
        warnings=(HOSTILE,),
    )
    write_certificate(whole, tmp_path)
    page = (tmp_path / "certificate.html").read_text(encoding="utf-8")
    loads_nothing(page)
    assert page.count("&lt;script") > 15
    assert "<svg" in page
    assert "prefers-color-scheme: dark" in page


def test_a_certificate_of_a_silent_judge_has_a_page(tmp_path: Path) -> None:
    write_certificate(certificate(of([row(n, float(n % 2), None) for n in range(4)])), tmp_path)
    page = (tmp_path / "certificate.html").read_text(encoding="utf-8")
    assert "no label came" in page
    assert "nan" not in page.lower().split()


def test_a_certificate_of_a_judge_that_no_temperature_fits_has_a_page(tmp_path: Path) -> None:
    # Right on every pair.
    write_certificate(certificate(of([row(n) for n in range(4)])), tmp_path)
    page = (tmp_path / "certificate.html").read_text(encoding="utf-8")
    assert "of all pairs none is likeliest" in page


def test_a_dot_of_the_plot_stands_where_its_bin_does(tmp_path: Path) -> None:
    # Sure to 75 % and right on 3 of 4: half way to the right, a quarter of the way down.
    rows = [row(n, 1.0, 0.75 if n else 0.25) for n in range(4)]
    write_certificate(certificate(of(rows)), tmp_path)
    page = (tmp_path / "certificate.html").read_text(encoding="utf-8")
    [dot] = re.findall(r"<circle [^>]*><title>as given: 4 pairs", page)
    assert 'cx="110.0" cy="55.0"' in dot


# The sweep.


def way(name: str, found: SetFigures | None, failed: str = "", template: str = "t") -> SweepRow:
    asked = None if found is None else cost()
    return SweepRow(way=name, template=template, figures=found, cost=asked, failed=failed)


SWEPT = (
    way("impossible", None, "needs log-probabilities"),
    way("coin", judged(20, 20)),
    way("silent", of([row(n, float(n % 2), None) for n in range(4)])),
    way("good", judged(36, 4)),
    way("same, less", judged(18, 2, 20)),
)


def test_the_best_way_is_first_and_what_could_not_be_asked_is_last() -> None:
    names = [r.way for r in ranked(SWEPT)]
    assert names[:2] == ["good", "same, less"]
    assert names[-1] == "impossible"


def test_the_table_has_a_line_for_each_way_and_tells_why_one_is_impossible() -> None:
    long = way("pairwise", judged(24, 16), template="/home/someone/templates/" + "long" * 9 + ".j2")
    lines = sweep_table([*SWEPT, long]).splitlines()
    assert len(lines) == 1 + len(SWEPT) + 1
    assert "needs log-probabilities" in lines[-1]
    [good] = [line for line in lines if line.startswith("good")]
    assert "90 %" in good  # agreement
    assert "50 %" in good  # the length rule
    [silent] = [line for line in lines if line.startswith("silent")]
    assert "no label" in silent


def test_a_sweep_is_written_best_first_and_escaped(tmp_path: Path) -> None:
    write_sweep([*SWEPT, way(HOSTILE, None, HOSTILE, template=HOSTILE)], tmp_path)
    rows = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))["rows"]
    assert SweepRow.model_validate(rows[0]).way == "good"
    page = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    loads_nothing(page)
    assert page.index("good") < page.index("coin") < page.index("impossible")


def test_a_way_has_figures_or_a_reason_for_having_none() -> None:
    with pytest.raises(ValidationError, match="either figures and a cost or a reason"):
        SweepRow(way="x", template="t")
    with pytest.raises(ValidationError, match="either figures and a cost or a reason"):
        SweepRow(way="x", template="t", figures=judged(3, 3), failed="no")
