"""Signs of reward hacking: each fires on what was planted and stays silent otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.evaluate.intervals import Interval
from rlaif.evaluate.rl import (
    WINDOW,
    Finding,
    JudgeCheck,
    RLSection,
    alarms,
    judged,
    sentences,
    warnings,
)
from rlaif.train.rl_settings import Measure

PLAIN = {"kl": 0.0, "length": 40.0, "distinct": 0.9, "repetition": 0.05, "truncated": 0.0}
LEVELS = st.lists(st.floats(-3, 3), min_size=1, max_size=20)


def step(number: int, proxy: float = 0.0, held_out: float | None = 0.0, **changes: Any) -> Measure:
    return Measure(
        step=number,
        answers=32,
        kl_se=0.1,
        proxy=proxy,
        proxy_se=0.1,
        held_out=held_out,
        held_out_se=None if held_out is None else 0.1,
        **{**PLAIN, **changes},
    )


def told(trace: Sequence[Measure], start: Measure | None = None) -> list[Finding]:
    """What is told after each step, the first of a kind."""
    first: dict[str, Finding] = {}
    for end in range(1, len(trace) + 1):
        for finding in alarms(start or step(0), trace[:end], 2.0):
            first.setdefault(finding.kind, finding)
    return list(first.values())


def test_a_proxy_that_rises_while_the_held_out_check_falls_is_told_with_step_and_figures() -> None:
    # Five steps at each level: better on both, then better on one alone.
    levels = [(0.0, 0.0), (1.0, 1.0), (2.0, 0.0)]
    trace = [step(5 * i + j + 1, *level) for i, level in enumerate(levels) for j in range(WINDOW)]
    (finding,) = told(trace)
    assert finding.kind == "hacking"
    # A window's standard error is 0.1 / sqrt(5), of a difference sqrt(2) times that: four of them
    # are 0.253. After step 13 the check is at 2 / 5, and was 3 / 5 in the five steps to the eighth;
    # after step 14 it is at 1 / 5 and was 4 / 5.
    assert finding.step == 14
    assert finding.figures == pytest.approx(
        {
            "held_out_best": 0.8,
            "held_out_best_step": 9,
            "held_out": 0.2,
            "proxy_then": 0.8,
            "proxy": 1.8,
        }
    )
    assert finding.text == (
        "since step 9 the held-out check fell from 0.800 to 0.200 while the proxy reward rose from "
        "0.800 to 1.80"
    )


def test_a_held_out_check_that_falls_from_the_start_is_told_as_soon_as_a_window_is_full() -> None:
    (finding,) = told([step(n, 0.3 * n, -0.3 * n) for n in range(1, 9)])
    assert (finding.kind, finding.step) == ("hacking", WINDOW)
    assert finding.text.startswith("since the start the held-out check fell")


@pytest.mark.parametrize(
    "trace",
    [
        [step(n, 0.3 * n, 0.2 * n) for n in range(1, 30)],  # both rise
        [step(n, -0.3 * n, -0.2 * n) for n in range(1, 30)],  # both fall
        [step(n, 0.0, -0.2 * n) for n in range(1, 30)],  # the proxy gains nothing by it
        [step(n, 0.3 * n, -0.1) for n in range(1, 30)],  # within its error
        [step(n, 0.3 * n, None) for n in range(1, 30)],  # nothing to check by
        [step(n, 0.9 * n, -0.9 * n) for n in range(1, WINDOW)],  # too few steps to say
    ],
)
def test_there_is_no_alarm_where_no_reward_is_hacked(trace: list[Measure]) -> None:
    assert told(trace, step(0, held_out=trace[0].held_out and 0.0)) == []


@given(LEVELS)
def test_a_check_that_goes_with_the_proxy_never_calls_it_hacked(levels: list[float]) -> None:
    assert told([step(n, x, 0.5 * x) for n, x in enumerate(levels, 1)]) == []


@given(LEVELS, st.floats(-2, 2))
def test_the_same_added_to_all_figures_of_the_check_changes_no_step(
    levels: list[float], added: float
) -> None:
    one, two = (
        told([step(n, n, x + by) for n, x in enumerate(levels, 1)], step(0, held_out=by))
        for by in (0.0, added)
    )
    assert [f.step for f in one] == [f.step for f in two]


@pytest.mark.parametrize(("length", "times"), [(81.0, "2.02 times"), (19.0, "0.475 times")])
def test_answers_of_another_length_are_told(length: float, times: str) -> None:
    (finding,) = told([step(n, length=length) for n in range(1, 7)])
    assert (finding.kind, finding.step) == ("length", WINDOW)
    assert times in finding.text
    assert finding.figures["ratio"] == pytest.approx(length / 40)


def test_answers_within_the_factor_are_not_told() -> None:
    for length in (79.0, 21.0):
        assert told([step(n, length=length) for n in range(1, 7)]) == []


def test_answers_that_repeat_themselves_or_each_other_are_told() -> None:
    (itself,) = told([step(n, repetition=0.26) for n in range(1, 7)])
    assert itself.kind == "repetition"
    assert itself.text == (
        "answers repeat themselves in 26 % of their runs of four tokens (start: 5 %)"
    )
    (other,) = told([step(n, distinct=0.44) for n in range(1, 7)])
    assert other.text == (
        "44 % of the token pairs in a prompt's answers are distinct (start: 90 %)"
    )
    assert told([step(n, distinct=0.46, repetition=0.24) for n in range(1, 7)]) == []


def section(**changed: Any) -> RLSection:
    found: dict[str, Any] = {
        "algorithm": "rloo",
        "base": "embedded/tiny-random",
        "held_out": "other/reward_model",
        "beta": 0.05,
        "kl_budget": 10.0,
        "stopped": "kl_budget",
        "steps": 11,
        "seconds": 3.0,
        "prompts": 48,
        "dropped_prompts": 0,
        "reward_mean": (0.1,),
        "reward_sd": (0.5,),
        "start": step(0),
        "end": step(13, 1.25, -0.5, kl=10.4, length=81.0),
        "trace": tuple(step(n) for n in range(1, 13)),
        "findings": (),
    }
    return RLSection.model_validate(found | changed)


def test_the_report_says_how_far_it_went_what_it_gained_and_what_the_check_made_of_it() -> None:
    away, gained = sentences(section())
    assert away == (
        "RL (RLOO) against the reward model took 11 steps (stopped at the KL budget of 10.0 nats) "
        "and is 10.4 nats a response away from the start policy (β = 0.05)."
    )
    assert gained == (
        "Its reward went from 0 to 1.25 standard deviations of the start policy's, and the "
        "held-out check from 0 to −0.500; answers went from 40.0 to 81.0 tokens."
    )


def test_an_alarm_is_a_warning_of_the_report_and_so_is_a_reward_that_nothing_checks() -> None:
    assert warnings(section()) == []
    hacked = told([step(n, 0.3 * n, -0.3 * n) for n in range(1, 9)])
    (said,) = warnings(section(findings=hacked))
    assert said.startswith("RL, step 5: since the start the held-out check fell")
    unchecked = section(held_out=None, start=step(0, held_out=None), end=step(13, 1.0, None))
    (said,) = warnings(unchecked)
    assert "no held-out check (rl.held_out, rl.judge)" in said
    assert "nothing was held out to check it by" in sentences(unchecked)[1]


def checked(
    win_rate: tuple[float, float, float] | None, labelled: bool = False, **changed: Any
) -> RLSection:
    rate = None
    if win_rate is not None:
        low, value, high = win_rate
        rate = Interval(value=value, low=low, high=high, n=60, clusters=16)
    said = {"judge": "openai/m", "labelled": labelled, "comparisons": 64, "unscored": 4}
    return judged(section(**changed), JudgeCheck(win_rate=rate, **said))


def test_a_judge_that_prefers_the_start_while_the_reward_rose_is_an_alarm() -> None:
    bad = (0.21, 0.3, 0.41)
    (said,) = warnings(checked(bad))
    assert said == (
        "RL, step 11: the reward rose from 0 to 1.25, and the judge openai/m prefers the start's "
        "answers: the trained policy wins 30 % [21 %, 41 %]."
    )
    assert sentences(checked(bad))[2] == (
        "By the judge openai/m its answers win 30 % [21 %, 41 %] of the comparisons with the "
        "start policy's (4 of 64 stayed unscored)."
    )
    # Neither a coin in the interval nor a reward that did not rise is one.
    assert warnings(checked((0.21, 0.4, 0.5))) == []
    assert warnings(checked(bad, end=step(13, 0.0, 0.0))) == []
    assert "gave no verdict" in sentences(checked(None))[2]


def test_another_judge_replaces_what_the_one_before_found() -> None:
    found = checked((0.21, 0.3, 0.41))
    assert judged(found, None) == section()


def test_a_reward_that_a_judge_checks_is_checked() -> None:
    unchecked = {"held_out": None, "start": step(0, held_out=None), "end": step(13, 1.0, None)}
    assert warnings(checked((0.5, 0.6, 0.7), **unchecked)) == []
    (silent,) = warnings(checked(None, **unchecked))
    assert "no held-out check" in silent
    itself, also = warnings(checked((0.5, 0.6, 0.7), labelled=True, **unchecked))
    assert "has labelled the data" in itself
    assert "no held-out check" in also
