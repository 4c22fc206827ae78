"""The figures of a study: by hand where it is small, recovered where the truth was planted."""

from __future__ import annotations

import math

import pytest
from planted_study import (
    CHOSEN,
    FREE,
    REJECTED,
    Plan,
    comparison,
    given,
    group,
    planted,
    said,
    trained,
    verdict,
)

from rlaif.errors import SetupError
from rlaif.evaluate.overoptimization import kl_of_best_of
from rlaif.evaluate.study.arm_records import KINDS, Difference
from rlaif.evaluate.study.data import StudyData
from rlaif.evaluate.study.family import comparisons
from rlaif.evaluate.study.figures import family_of, kin_of, study_report
from rlaif.evaluate.study.limits import limits
from rlaif.evaluate.study.records import StudyReport
from rlaif.evaluate.study.summary import headline
from rlaif.evaluate.study.words import (
    alarms,
    calibrated,
    flipped_words,
    planned_words,
    rate_and_money,
    verdict_words,
    warnings,
)

MANY = 600


def by_hand() -> StudyData:
    """Four held-out pairs of which people prefer the first; two arms, two seeds.

    Reward models: human is right on 1, 2, 3 and then on 1, 2; ai_soft is always wrong.
    """
    data = planted(Plan(prompts=4, seeds=2, arms=("human", "ai_soft")))
    groups = [group(f"test-{i}", "test", first_wins=True, tags=("chat",)) for i in range(4)]
    groups.append(group("train-0", "train", first_wins=True))
    right: list[float | None] = [1.0, 0.0]
    wrong: list[float | None] = [0.0, 1.0]

    def scored(*rights: int) -> dict[str, list[float | None]]:
        of = {f"test-{i}": right if i in rights else wrong for i in range(4)}
        return {**of, "train-0": right}

    scores = {
        ("reward_model", "human", 0): scored(0, 1, 2),
        ("reward_model", "human", 1): scored(0, 1),
        ("reward_model", "ai_soft", 0): scored(),
        ("reward_model", "ai_soft", 1): scored(),
        ("dpo", "human", 0): scored(0, 1, 2, 3),
        ("dpo", "human", 1): scored(0, 1, 2, 3),
        ("dpo", "ai_soft", 0): scored(),
        ("dpo", "ai_soft", 1): scored(3),
    }
    comparisons = [
        comparison("test-0", 0.9),
        comparison("test-1", 0.2),
        comparison("test-2", 0.5),
        comparison("test-3", None),
        comparison("train-0", 0.95),
    ]
    return data._replace(
        groups=groups, comparisons=comparisons, units=given(data.units, scores), verdicts=[]
    )


def accuracy(report: StudyReport, kind: str, arm: str) -> tuple[float, tuple[float, ...]]:
    (found,) = [a for a in report.accuracies if (a.kind, a.arm) == (kind, arm)]
    return found.on_human.value, found.on_human_by_seed


def test_accuracies_by_hand() -> None:
    report = study_report(by_hand())
    assert accuracy(report, "reward_model", "human") == (0.625, (0.75, 0.5))
    assert accuracy(report, "reward_model", "ai_soft") == (0.0, (0.0, 0.0))
    assert accuracy(report, "dpo", "ai_soft") == (0.125, (0.0, 0.25))
    of = report.held_out
    assert (of.pairs, of.prompts, of.ai_pairs, of.left_out) == (4, 4, 2, 0)
    assert of.longer_human.value == 0.0  # the rejected ones are longer
    assert of.longer_ai is not None
    assert of.longer_ai.value == 0.5
    # The judge decided pair 0 for the first and pair 1 for the second: half of "always first" …
    (human,) = [a for a in report.accuracies if (a.kind, a.arm) == ("dpo", "human")]
    assert human.on_ai_by_seed == (0.5, 0.5)


def test_differences_are_those_of_the_means() -> None:
    report = study_report(by_hand())
    found = {d.measure: d.estimate.value for d in report.differences}
    assert found == {
        "held-out accuracy of the reward model by people's labels": -0.625,
        "held-out accuracy of DPO by people's labels": -0.875,
    }


def test_calibration_is_of_the_sigmoid_of_the_score_difference() -> None:
    (human,) = [
        a
        for a in study_report(by_hand()).accuracies
        if (a.kind, a.arm) == ("reward_model", "human")
    ]
    assert human.calibration is not None
    # All margins are 1: confidence sigmoid(1) = 0.731 on 8 pairs, of which 5 are right.
    assert human.calibration.raw.ece == pytest.approx(1 / (1 + math.exp(-1)) - 5 / 8)
    assert human.calibration.n == 8


def test_labels_by_hand() -> None:
    found = study_report(by_hand()).labels
    assert (found.every.pairs, found.every.ai_ties, found.unscored) == (4, 1, {"no_label": 1})
    assert found.every.accuracy is not None
    assert found.every.accuracy.value == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert {name: a.pairs for name, a in found.by_split.items()} == {"test": 3, "train": 1}
    assert {name: a.pairs for name, a in found.by_margin.items()} == {
        "50–60 %": 1,
        "80–90 %": 1,
        "90–100 %": 2,
    }
    assert {name: a.pairs for name, a in found.by_source.items()} == {"chat": 3}
    assert found.by_principle["kind"].pairs == 4
    assert found.by_principle["kind"].ai_ties == 1
    (apart,) = found.surest
    assert (apart.prompt_id, apart.chosen, apart.rejected) == ("test-1", CHOSEN, REJECTED)
    assert apart.confidence == pytest.approx(0.8)


def test_the_examples_are_those_of_which_the_judge_was_surest() -> None:
    data = by_hand()
    p_first = {"test-0": 0.3, "test-1": 0.05, "test-2": 0.2, "test-3": 0.05, "train-0": 0.99}
    found = study_report(
        data._replace(comparisons=[comparison(name, p) for name, p in p_first.items()])
    ).labels
    assert [d.prompt_id for d in found.surest] == ["test-1", "test-3", "test-2"]


def test_a_report_that_may_not_pass_the_data_on_shows_no_example() -> None:
    data = by_hand()
    data = data._replace(settings=data.settings._replace(examples=0))
    assert study_report(data).labels.surest == ()


def test_a_pair_that_the_judge_was_not_asked_about_is_counted() -> None:
    data = by_hand()
    found = study_report(data._replace(comparisons=data.comparisons[:4])).labels
    assert (found.not_asked, found.every.pairs) == (1, 3)


def test_agreement_and_rank_correlation_of_both_models_of_an_arm() -> None:
    human, ai_soft = study_report(by_hand()).same_labels
    # Reward model and DPO of human: alike on 3 and on 2 of 4 pairs.
    assert human.agreement.value == pytest.approx(5 / 8)
    assert [t.tau.value for t in human.tau if t.tau] == pytest.approx([0.5, 0.0])
    assert human.difference.estimate.value == pytest.approx(0.625 - 1.0)
    assert ai_soft.agreement.value == pytest.approx(7 / 8)
    assert human.best_of is None


def test_a_pair_that_one_model_could_not_score_is_left_out_for_all() -> None:
    data = by_hand()
    scores = dict(data.units["dpo", "ai_soft", 1].scores)
    scores["test-3"] = [None, 0.0]
    report = study_report(data._replace(units=given(data.units, {("dpo", "ai_soft", 1): scores})))
    assert (report.held_out.pairs, report.held_out.left_out) == (3, 1)
    assert accuracy(report, "dpo", "human") == (1.0, (1.0, 1.0))
    assert accuracy(report, "reward_model", "human")[1] == pytest.approx((1.0, 2 / 3))


def test_pairs_that_are_all_too_long_are_a_mistake_of_the_config() -> None:
    data = by_hand()
    long: dict[str, list[float | None]] = {
        i: [None, None] for i in data.units["dpo", "human", 0].scores
    }
    with pytest.raises(SetupError, match="every held-out pair has an answer too long") as refused:
        study_report(data._replace(units=given(data.units, {("dpo", "human", 0): long})))
    assert refused.value.field == "reward_model.max_length"


def test_what_a_policy_says_by_hand() -> None:
    data = by_hand()
    report = study_report(
        data._replace(
            said={
                **data.said,
                ("human", 0): said("human-0", 4, [1.0, 2.0, 3.0, 4.0]),
                ("human", 1): said("human-1", 4, []),
            }
        )
    )
    start, human, _ = report.policies
    assert (start.arm, start.kl, start.kl_by_seed) == ("start", None, ())
    assert human.kl is not None
    assert (human.kl.value, human.kl_by_seed) == (2.5, (2.5, None))
    assert human.characters is not None
    assert human.characters.value == len("some words here")
    # Three words, said eight times: 3 of 24, and 2 pairs of words.
    assert (human.answers, human.distinct_1, human.distinct_2) == (8, 3 / 24, 2 / 24)
    assert human.refuses_harmless is not None
    assert human.refuses_harmful is not None
    assert (human.refuses_harmless.value, human.refuses_harmful.value) == (0.0, 1.0)


def test_seeds_that_differ_widen_what_is_said_of_a_policy() -> None:
    # By seed 0.01, 1.99 and 3.99 nats: mean 1.997, se 1.149, t(0.975, 2) = 4.303.
    data = planted(Plan(prompts=30, arms=("human", "ai_soft")))
    spoken = {}
    for e, (kl, word) in enumerate(((0.01, "a"), (1.99, "b" * 100), (3.99, "c" * 200))):
        of = said(f"human-{e}", 30, [kl + 0.001 * (i % 2) for i in range(30)])
        answers = [
            r.model_copy(update={"text": word + "." * (i % 2)}) for i, r in enumerate(of.answers)
        ]
        refusing = [
            r.model_copy(update={"prompt_id": name, "text": "I cannot help." if e else "Yes."})
            for name in ("bomb", "poison")
            for r in of.refusing[:1]
        ]
        spoken["human", e] = of._replace(answers=answers, refusing=refusing)
    report = study_report(
        data._replace(
            said={**data.said, **spoken},
            harmful=frozenset({"bomb", "poison"}),
        )
    )
    human = report.policies[1]
    assert human.kl is not None
    assert (human.kl.low, human.kl.high) == pytest.approx((-2.946, 6.941), abs=0.01)
    assert human.characters is not None
    assert human.characters.high is not None
    assert human.characters.high > 300
    assert human.refuses_harmful is not None
    assert human.refuses_harmful.value == pytest.approx(2 / 3)
    assert human.refuses_harmful.low == 0.0


def test_a_win_rate_by_hand() -> None:
    verdicts = [
        verdict("ai_soft", "human", seed, f"test-{i}", p)
        for seed, row in enumerate([(1.0, 1.0, 0.5, None), (1.0, 0.0, 0.5, 1.0)])
        for i, p in enumerate(row)
    ]
    found = study_report(by_hand()._replace(verdicts=verdicts)).against_human["ai_soft"]
    # Prompt 3 has no verdict under seed 0 and is left out under seed 1: 2.5 / 3 and 1.5 / 3.
    assert found.by_seed == pytest.approx((2.5 / 3, 1.5 / 3))
    assert found.rate.value == pytest.approx(4 / 6)
    assert found.difference.estimate.value == pytest.approx(4 / 6 - 0.5)
    assert (found.ties, found.unscored, found.left_out) == (2, 1, 1)


def test_answers_of_one_length_are_not_corrected_for_it() -> None:
    found = study_report(planted()).against_start["human"].corrected
    assert found.corrected is None
    assert found.reason == "all length ratios are alike"


def test_the_best_of_n_is_said_to_reach_the_kl_or_not() -> None:
    # KL of the policies is 2; the best of 4 reaches 0.64, the best of 30 reaches 2.43.
    data = planted()
    few = study_report(data).same_labels[0].best_of
    assert few is not None
    assert (few.n, few.most, few.reached) == ((4, 4, 4), 4, False)
    assert few.kl_of_n == pytest.approx([math.log(4) - 3 / 4] * 3)
    assert all(kl is not None and abs(kl - 2.0) < 0.5 for kl in few.kl_of_policy)
    many = study_report(data._replace(start=said("start", 40, [], 30))).same_labels[0].best_of
    assert many is not None
    assert kl_of_best_of(30) > 2.4
    assert (many.most, many.reached) == (30, True)
    unknown = data.said["human", 1]._replace(log_ratios=[])
    data = data._replace(said={**data.said, ("human", 1): unknown}, start=said("start", 40, [], 30))
    of = study_report(data).same_labels[0].best_of
    assert of is not None
    assert (of.kl_of_policy[1], of.reached) == (None, False)


def between(report: StudyReport, a: str, b: str) -> dict[str, Difference]:
    found = [d for d in report.differences if (d.a, d.b) == (a, b)]
    return dict(zip(KINDS, found, strict=True))


@pytest.fixture(scope="module")
def alike() -> StudyReport:
    return study_report(planted(Plan(prompts=MANY)))


@pytest.fixture(scope="module")
def better() -> StudyReport:
    """ai_soft is better than the others by ten points and wins 60 %."""
    right = {"human": 0.7, "ai_soft": 0.8, "noise_matched": 0.7}
    wins = {"human": 0.5, "ai_soft": 0.6, "noise_matched": 0.5}
    return study_report(planted(Plan(prompts=MANY, right=right, wins=wins)))


def test_arms_that_are_alike_are_not_said_to_differ(alike: StudyReport) -> None:
    rates = [*alike.against_start.values(), *alike.against_human.values()]
    found = [d.found.verdict for d in (*alike.differences, *(r.difference for r in rates))]
    assert len(found) == 11
    assert "different" not in found
    assert "equivalent" in found


def test_with_few_prompts_nothing_is_shown_and_it_is_said_what_is_lacking() -> None:
    report = study_report(planted(Plan(prompts=20)))
    assert {d.found.verdict for d in report.differences} == {"undecided"}
    for found in report.differences:
        assert found.detectable is not None
        assert found.detectable > 0.1
    told = " ".join(limits(report).sentences)
    assert "shown neither to differ nor to be within 5.00 points" in told
    assert "of arms that are alike takes" in told


def test_every_comparison_is_told_once_with_its_p_and_the_primary_ones_first() -> None:
    report = study_report(planted(Plan(shares=(0.25, 0.5))))
    (table,) = limits(report).tables
    names = [row[0] for row in table.rows]
    assert names[:2] == ["† reward model: ai_soft − human", "† ai_soft against human"]
    # Three arms: 3 · 2 accuracies, 3 + 2 win rates, and 3 · 2 of reward model against DPO.
    assert len(names) == len(set(names)) == 17
    assert names[-1] == "noise_matched: reward model − DPO"
    assert [name.startswith("†") for name in names] == [True] * 2 + [False] * 15
    assert "in two families: 2 primary ones and 15 others" in limits(report).note


def test_p_is_adjusted_in_each_family_by_itself() -> None:
    report = study_report(planted(Plan(prompts=60)))
    primary = [d for d in comparisons(report) if d.primary]
    assert [(d.a, d.b) for d in primary] == [
        ("ai_soft", "human"),
        ("ai_soft against human", "one half"),
    ]
    p, other = sorted((d.p, d.p_holm) for d in primary if d.p is not None)
    # The smaller of two is doubled, the larger is at least that.
    assert p[1] == min(1.0, 2 * p[0])
    assert other[1] == max(p[1], other[0])
    others = [d for d in comparisons(report) if not d.primary]
    smallest = min(others, key=lambda d: d.p or 1.0)
    assert smallest.p is not None
    assert smallest.p_holm == min(1.0, 15 * smallest.p)


def test_what_is_found_only_by_itself_is_not_called_different(better: StudyReport) -> None:
    (found,) = [d for d in better.differences if (d.a, d.b, d.primary) == ("ai_soft", "human", 1)]
    assert verdict_words(found) == "different"
    assert verdict_words(found.model_copy(update={"p_holm": 0.051})) == "different by itself"


def test_without_ai_soft_the_primary_comparison_is_that_of_ai_hard() -> None:
    arms = ("human", "ai_hard", "noise_matched")
    plan = Plan(arms=arms, right=dict.fromkeys(arms, 0.7), wins=dict.fromkeys(arms, 0.5))
    report = study_report(planted(plan))
    assert {d.a for d in comparisons(report) if d.primary} == {"ai_hard", "ai_hard against human"}


def test_the_flips_of_the_control_are_counted_by_seed() -> None:
    data = planted(Plan(prompts=40, seeds=2))
    judged = {c.prompt_id: c for c in data.comparisons}
    # The judge decides 38 training pairs, and 9 of them otherwise than people.
    labelled = [c for c in data.comparisons if not c.prompt_id.startswith("train")]
    for i, g in enumerate(g for g in data.groups if g.split == "train"):
        as_people = g.comparisons[0].p_first
        p = None if i < 2 else (1.0 - as_people if i < 11 else as_people)
        labelled.append(comparison(judged[g.prompt.id].prompt_id, p))
    report = study_report(data._replace(comparisons=labelled))
    assert [(f.seed, f.flipped, f.labels) for f in report.training.flipped] == [
        (0, 9, 38),
        (1, 9, 38),
    ]
    (said,) = flipped_words(report)
    assert "9 of 38 · 9 of 38 (by seed) are flipped at random" in said
    assert "noise_matched has up to" not in "\n".join(warnings(report))
    arms = ("human", "ai_soft")
    assert study_report(planted(Plan(arms=arms))).training.flipped == ()


def test_a_control_that_is_mostly_noise_is_warned_of() -> None:
    told = "\n".join(warnings(study_report(planted(Plan(prompts=200, agree=0.5)))))
    assert "comparisons with that arm say little" in told


def test_a_curve_ends_in_the_accuracy_and_interval_of_the_whole() -> None:
    report = study_report(planted(Plan(shares=(0.25, 0.5))))
    assert report.curve is not None
    for arm, curve in (("human", report.curve.human), ("ai_soft", report.curve.ai)):
        (whole,) = [a for a in report.accuracies if (a.kind, a.arm) == ("reward_model", arm)]
        assert curve.accuracies[-1] == whole.on_human
        assert all(a.low is not None and a.clusters == 40 for a in curve.accuracies)


def test_of_few_pairs_no_calibration_is_told() -> None:
    report = study_report(planted())
    assert report.held_out.pairs == 40
    assert calibrated(report.accuracies[0], 49) == "too few pairs (49)"
    assert calibrated(report.accuracies[0], 50).endswith(", n 50)")


def test_an_exchange_rate_names_the_arm_whose_labels_it_is_in() -> None:
    arms = ("human", "ai_hard")
    plan = Plan(arms=arms, right=dict.fromkeys(arms, 0.7), wins=dict.fromkeys(arms, 0.5))
    report = study_report(planted(plan._replace(shares=(0.25, 0.5))))
    told = rate_and_money(report)
    assert all("ai_hard labels" in sentence for sentence in told[:3])
    assert "AI labels" not in " ".join(told)


def test_an_arm_without_a_scored_comparison_is_named() -> None:
    data = planted()
    lost = [
        v.model_copy(update={"comparison": comparison(v.comparison.prompt_id, None)})
        if (v.first, v.second, v.seed) == ("ai_soft", "human", 1)
        else v
        for v in data.verdicts
    ]
    report = study_report(data._replace(verdicts=lost))
    assert set(report.against_human) == {"noise_matched"}
    assert (
        "No comparison against the arm human was scored under every seed for: ai_soft."
        in warnings(report)
    )
    assert warnings(study_report(data)) == []


def with_pairs(data: StudyData, pairs: dict[float, int]) -> StudyData:
    """The learning curve's parts, trained on so many pairs."""
    parts = {
        (arm, e, share): unit._replace(
            trained=unit.trained.model_copy(update={"pairs": pairs[share]})
        )
        for (arm, e, share), unit in data.parts.items()
    }
    return data._replace(parts=parts)


def test_shares_with_as_many_pairs_are_one_size_and_it_is_said() -> None:
    four = with_pairs(planted(Plan(shares=(0.2, 0.25, 0.5))), {0.2: 25, 0.25: 25, 0.5: 50})
    report = study_report(four)
    assert report.curve is not None
    assert report.curve.human.pairs == report.curve.ai.pairs == (25, 50, 100)
    assert any("The 4 shares of the learning curve come to 3 sizes" in w for w in warnings(report))
    three = with_pairs(planted(Plan(shares=(0.25, 0.5))), {0.25: 50, 0.5: 50})
    report = study_report(three)
    assert report.curve is None
    assert any("come to 2 sizes in pairs: there is no exchange" in w for w in warnings(report))


def test_a_curve_is_of_ai_hard_where_there_is_no_ai_soft() -> None:
    arms = ("human", "ai_hard")
    plan = Plan(arms=arms, right=dict.fromkeys(arms, 0.7), wins=dict.fromkeys(arms, 0.5))
    assert study_report(planted(plan._replace(shares=(0.25, 0.5)))).curve is not None


def test_a_better_arm_is_found_by_reward_models_dpo_and_win_rates(better: StudyReport) -> None:
    for other in ("human", "noise_matched"):
        for found in between(better, "ai_soft", other).values():
            assert found.found.verdict == "different"
            assert found.interval.low is not None
            assert found.interval.high is not None
            assert found.interval.low < 0.1 < found.interval.high
    assert better.against_human["ai_soft"].difference.found.verdict == "different"
    assert better.against_human["ai_soft"].rate.value == pytest.approx(0.6, abs=0.03)
    neither = between(better, "noise_matched", "human").values()
    assert "different" not in {d.found.verdict for d in neither}


def test_the_judges_agreement_is_recovered(better: StudyReport) -> None:
    found = better.labels
    assert found.every.accuracy is not None
    assert found.every.accuracy.low is not None
    assert found.every.accuracy.high is not None
    assert found.every.accuracy.low < 0.8 < found.every.accuracy.high
    # Which pairs the judge gets wrong was drawn at random.
    assert found.systematic is not None
    assert found.systematic.p > 0.05


def test_the_headline_says_which_arm_is_better(better: StudyReport) -> None:
    told = "\n".join(headline(better))
    assert "† ai_soft − human, held-out accuracy of the reward model" in told
    assert told.count("different (p by Holm 0.012).") == 2
    assert "warning" not in told


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("openai/gpt-5-mini", "gpt"),
        ("openai/o3-mini", "gpt"),
        ("openai/o1", "gpt"),
        ("anthropic/claude-opus-5", "claude"),
        ("vllm/meta-llama/Llama-3.1-8B-Instruct", "llama"),
        ("vllm/Qwen/Qwen3-4B", "qwen"),
        ("served/qwen2.5-7b", "qwen"),
        ("vllm/mistralai/Mixtral-8x7B-Instruct-v0.1", "mistral"),
        ("vllm/google/gemma-3-4b-it", "gemma"),
        ("embedded/smollm2-135m-instruct", "smollm"),
        ("fake/shorter", "fake"),
        ("fake/llama", "fake"),
        ("vllm/allenai/OLMo-2-7B", "olmo"),
        ("weights@0123456789abcdef", None),
        ("vllm/me/rosalind", None),
        ("vllm/me/foo3", None),
    ],
)
def test_a_models_family_is_told_from_its_name(model: str, family: str | None) -> None:
    assert family_of(model) == family


@pytest.mark.parametrize(
    ("labelled", "compared", "kin"),
    [
        ("fake/shorter", "fake/shorter", "same"),
        ("vllm/me/mine", "vllm/me/mine", "same"),
        ("openai/gpt-5 + vllm/me/mine", "vllm/me/mine", "same"),
        ("openai/gpt-5", "openai/o3", "family"),
        ("openai/gpt-5 + anthropic/claude-5", "anthropic/claude-4", "family"),
        ("openai/gpt-5", "vllm/me/mine", "unknown"),
        ("vllm/me/mine", "vllm/you/yours", "unknown"),
        ("openai/gpt-5", "anthropic/claude-5", "other"),
    ],
)
def test_kin_of_two_judges(labelled: str, compared: str, kin: str) -> None:
    assert kin_of(labelled, compared) == kin


@pytest.mark.parametrize(
    ("compared", "alarmed", "warned"),
    [
        ("openai/gpt-5", "openai/gpt-5 labelled the AI arms and compares the policies as well", ""),
        ("openai/gpt-4.1", "is of the family of openai/gpt-5, which labelled", ""),
        ("vllm/me/mine", "", "only the names are known to differ"),
        ("anthropic/claude-5", "", ""),
    ],
)
def test_a_judge_that_is_kin_to_the_labeller_raises_the_alarm(
    compared: str, alarmed: str, warned: str
) -> None:
    report = study_report(planted(Plan(compared_by=compared)))
    for found, told in ((alarms(report), alarmed), (warnings(report), warned)):
        assert len(found) == bool(told)
        assert told in " ".join(found)


def test_arms_that_were_not_trained_alike_are_an_error_in_the_data() -> None:
    data = planted()
    key = ("dpo", "ai_soft", 1)
    other = data.units[key]._replace(trained=trained("dpo", "ai_soft", 1, steps=4))  # type: ignore[index]
    report = study_report(data._replace(units={**data.units, key: other}))  # type: ignore[dict-item]
    assert report.training.unequal == (
        "steps differ between arms (dpo, seed 1, 100% of the pairs): human 3, ai_soft 4, "
        "noise_matched 3",
    )
    assert "A comparison of these arms is one of that, too." in alarms(report)[0]
    assert study_report(data).training.unequal == ()


def test_costs_and_what_a_label_is_worth() -> None:
    spent = FREE.model_copy(update={"usd": 8.0})
    right = {"human": 0.7, "ai_soft": 0.7}
    plan = Plan(
        arms=("human", "ai_soft"),
        right=right,
        shares=(0.25, 0.5),
        usd_per_human_label=0.5,
        spent=spent,
    )
    report = study_report(planted(plan))
    assert report.cost.human_labels == report.cost.ai_labels == 80
    assert report.cost.usd_per_ai_label == pytest.approx(0.1)
    more = planted(plan)
    beside = [comparison("test-0", 0.9, ("test-0/1", "test-0/2"))]
    cost = study_report(more._replace(comparisons=[*more.comparisons, *beside])).cost
    assert cost.ai_labels == 80  # people said nothing of the other pair
    assert report.curve is not None
    assert report.curve.human.pairs == (25, 50, 100)
    for rate, worth in zip(report.curve.rates, report.worth, strict=True):
        assert worth.ai_usd == pytest.approx(0.1 * rate.rate)
        assert worth.human_usd == 0.5
    unknown = study_report(planted(plan._replace(usd_per_human_label=None)))
    assert unknown.worth == ()
    assert study_report(planted(plan._replace(shares=()))).curve is None


def test_before_a_run_it_is_said_what_the_prompts_can_show() -> None:
    # variance 0.25: se = 0.5 / sqrt(400) = 2.5 points; (1.966 + 0.843) se = 7.02 points;
    # (z(0.95) + z(0.9))^2 0.25 / 0.05^2 = 856.4, and three more for t.
    told = planned_words(400, 0.05, 1600)
    assert "400 held-out prompts can show a difference of 7.02 points" in told
    assert "alike within 5.00 points takes 859 of them, about 3,436 pairs in all" in told
    assert "next to nothing" not in planned_words(20, 0.05, 80)


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (1, "with 1 held-out prompt it can show next to nothing: no difference between two arms;"),
        # 0.25 (t_3(0.975) + t_3(0.8)) = 104 points, more than there are.
        (4, "with 4 held-out prompts it can show next to nothing: no difference between two arms;"),
        # se = 0.5 / sqrt(19); (2.101 + 0.862) se = 34.0 points.
        (19, "can show next to nothing: no difference under 34.0 points between two arms;"),
    ],
)
def test_before_a_run_of_few_prompts_it_is_said_that_they_show_next_to_nothing(
    prompts: int, said: str
) -> None:
    told = planned_words(prompts, 0.05, 10 * prompts)
    assert said in told
    assert "within 5.00 points takes 859 of them, about 8,590 pairs in all" in told
