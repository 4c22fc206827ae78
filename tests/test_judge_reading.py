"""From an answer to a probability: what counts as a verdict, and what does not."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif.judge.ask import PAIR_LABELS, POINT_LABELS
from rlaif.judge.read import Labels, Verdict, read_logprobs, read_text, read_verdict
from rlaif.types import Choice, TokenLogprob

RECORDED = Path(__file__).resolve().parents[2] / "shared" / "data" / "recorded_judges"
FLOOR = 0.1


def tokens(**probabilities: float) -> tuple[TokenLogprob, ...]:
    return spelled(probabilities)


def spelled(probabilities: dict[str, float]) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(token=t, logprob=math.log(p)) for t, p in probabilities.items())


def read(text: str, labels: Labels = PAIR_LABELS, finish: str = "stop") -> Verdict:
    return read_text(Choice(text=text, finish_reason=finish), labels)


def test_label_probabilities_are_renormalised_over_the_two_labels() -> None:
    found = read_logprobs(tokens(A=0.6, B=0.2, The=0.1), PAIR_LABELS, FLOOR)
    assert found.p_first_label == pytest.approx(0.75, abs=1e-12)
    assert found.label_mass == pytest.approx(0.8, abs=1e-12)
    assert found.reason == ""


def test_a_label_with_and_without_a_leading_space_counts_together() -> None:
    found = read_logprobs(spelled({"A": 0.2, " A": 0.1, " B": 0.1, "B\n": 0.2}), PAIR_LABELS, FLOOR)
    assert found.p_first_label == pytest.approx(0.5, abs=1e-12)
    assert found.label_mass == pytest.approx(0.6, abs=1e-12)


def test_the_article_a_is_not_the_label_a() -> None:
    found = read_logprobs(tokens(a=0.7, B=0.2), PAIR_LABELS, FLOOR)
    assert found.p_first_label == 0.0
    assert found.label_mass == pytest.approx(0.2, abs=1e-12)
    assert read("a").reason == "unreadable"


def test_words_count_in_any_case() -> None:
    found = read_logprobs(spelled({"Yes": 0.3, " yes": 0.3, "NO": 0.2}), POINT_LABELS, FLOOR)
    assert found.p_first_label == pytest.approx(0.75, abs=1e-12)
    assert read("NO.", POINT_LABELS).p_first_label == 0.0


def test_a_label_that_was_not_returned_counts_as_zero() -> None:
    assert read_logprobs(tokens(B=0.9), PAIR_LABELS, FLOOR).p_first_label == 0.0


def test_labels_below_the_floor_are_refused_and_their_mass_is_kept() -> None:
    found = read_logprobs(tokens(A=0.05, B=0.04, I=0.9), PAIR_LABELS, FLOOR)
    assert found.p_first_label is None
    assert found.label_mass == pytest.approx(0.09, abs=1e-12)
    assert found.reason == "label_mass_below_floor"
    assert read_logprobs(tokens(A=0.06, B=0.05), PAIR_LABELS, FLOOR).reason == ""


def test_no_label_at_all_is_refused_even_without_a_floor() -> None:
    assert read_logprobs(tokens(I=0.9), PAIR_LABELS, 0.0).reason == "label_mass_below_floor"


def test_masses_that_round_to_over_one_stay_probabilities() -> None:
    found = read_logprobs(spelled({"A": 0.7, "B": 0.3000001}), PAIR_LABELS, FLOOR)
    assert found.label_mass == 1.0


def test_log_probabilities_come_before_the_text() -> None:
    choice = Choice(text="A", finish_reason="length", first_token=tokens(A=0.4, B=0.5))
    assert read_verdict(choice, PAIR_LABELS, FLOOR).p_first_label == pytest.approx(4 / 9)
    plain = Choice(text="A", finish_reason="stop")
    assert read_verdict(plain, PAIR_LABELS, FLOOR) == Verdict(1.0, None, "")


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ("A", "A"),
        (" B.\n", "B"),
        ("**B**", "B"),
        ("Response B", "B"),
        ("My verdict: [[A]]", "A"),
        ("[[A]] at first sight, but on reflection [[B]]", "B"),
        ("The verdict is A. No, wait: the verdict is B.", "B"),
        ("Response B is shorter.\n\nVerdict: **A**", "A"),
        ("The better response is B, since A rambles.", "B"),
        ("Both try. Response A is clearly better.", "A"),
        ("Response A is better in tone. Still, response B is the overall winner.", "B"),
        ("Although A is not wrong, response B is better.", "B"),
        ("B\n\nIt gets to the point, and A does not.", "B"),
        ("B\n\nOn reflection, the verdict is A.", "A"),
        ("It is a close call.\nA", "A"),
    ],
)
def test_the_last_stated_verdict_counts(text: str, winner: str) -> None:
    assert read(text) == Verdict(1.0 if winner == "A" else 0.0, None, "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("I'm sorry, but I can't compare these.", "unreadable"),
        ("A and B are equally good", "unreadable"),
        ("Neither response A nor response B is better.", "unreadable"),
        ("I would not say that response A is better.", "unreadable"),
        ("It is unclear whether the answer is A", "unreadable"),
        ('The response says "the verdict is A", which settles nothing', "unreadable"),
        ('It quotes "A"', "unreadable"),
        ("Answer A is polite, and answer B is not.", "unreadable"),
        ("A\nis friendly.\nB\nis short.", "unreadable"),
        ("C", "unreadable"),
        ("[[C]]", "off_the_menu"),
        ("[[A]] or rather [[tie]]", "off_the_menu"),
        ("The winner is C.", "off_the_menu"),
    ],
)
def test_anything_else_is_unscored_with_its_reason(text: str, reason: str) -> None:
    assert read(text) == Verdict(None, None, reason)


@pytest.mark.parametrize(
    "text",
    [
        "A",  # careful comparison shows B
        "Let me think about response A and",
        "The verdict is A and I will",
        "I would say [[A]] if it were shorter, but",
        "Let me compare.\nA",
    ],
)
def test_an_answer_cut_by_the_limit_is_truncated_whatever_it_began_to_say(text: str) -> None:
    assert read(text, finish="length") == Verdict(None, None, "truncated")


def test_an_answer_cut_right_behind_its_verdict_counts() -> None:
    assert read("It is shorter. [[A]]", finish="length").p_first_label == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "Response A is not better.",
        "Response A is no better than the other one.",
        "Response A is hardly better.",
        "Response A is not the better one.",
        "My answer is A: worse than the other.",
        "The better response is A? No, not A.",
    ],
)
def test_a_negated_statement_is_no_verdict(text: str) -> None:
    assert read(text).p_first_label is None


def recorded(name: str) -> Any:
    path = RECORDED / name
    if not path.is_file():
        pytest.skip(f"{name}: the recorded answers of real judges are not on this machine")
    with gzip.open(path, "rt", encoding="utf-8") as f:
        return json.load(f) if name.endswith(".json.gz") else [json.loads(line) for line in f]


def answers_of_five_judges() -> Iterator[tuple[str, str, bool, str | None]]:
    """Judge and prompt, answer, whether the order was swapped, published winner ("1", "2")."""
    for row in recorded("llmbar-five-models.jsonl.gz"):
        for result in row["results"]:
            for order, given in result.items():
                yield row["judge"], given["completion"][0], order == "swap = True", given["winner"]


def test_recorded_answers_of_five_real_judges_are_read_as_published() -> None:
    counts: Counter[str] = Counter()
    for judge, text, swapped, winner in answers_of_five_judges():
        # Under this one prompt the published winner contradicts the answer's plain words in 83 of
        # 384 cases ("Output (b) is better." published as a win of (a)): the next test.
        if judge == "PaLM2/CoT":
            continue
        p_a = read(text, ("a", "b")).p_first_label
        assert (p_a is None) == (winner is None), text
        if p_a is None:
            counts["no winner"] += 1
        else:
            assert winner == ("1" if (p_a == 1.0) != swapped else "2"), text
            counts["read"] += 1
    assert counts == {"read": 3483, "no winner": 11}


def test_recorded_answers_with_wrong_published_winners_are_read_as_they_are_worded() -> None:
    read_as: Counter[str] = Counter()
    for judge, text, _, _ in answers_of_five_judges():
        if judge != "PaLM2/CoT":
            continue
        says = {label for label in "ab" if f"Output ({label}) is better" in text}
        if len(says) == 1:
            assert read(text, ("a", "b")).p_first_label == (1.0 if says == {"a"} else 0.0), text
            read_as[says.pop()] += 1
    assert sum(read_as.values()) > 350


def test_recorded_reasons_of_gpt_35_are_read_where_they_name_the_better_response() -> None:
    agree: Counter[bool] = Counter()
    for row in recorded("pandalm-gpt-3.5-turbo.json.gz"):
        p = read(row["gpt_reason"] or "", ("1", "2")).p_first_label
        if p is None:
            continue
        assert row["gpt_result"] in ("1", "2"), "a tie or garbage was read as a verdict"
        agree[row["gpt_result"] == ("1" if p == 1.0 else "2")] += 1
    # In two rows GPT-3.5's own reason praises the other response than its verdict.
    assert agree == {True: 252, False: 2}
