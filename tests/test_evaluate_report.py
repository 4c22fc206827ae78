"""The report: what it refuses, what it says, what it writes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import rlaif.evaluate
from rlaif.errors import SetupError
from rlaif.evaluate.intervals import Interval
from rlaif.evaluate.report import draw_summary, find_warnings, headline, render_html, write_report
from rlaif.evaluate.schema import LabelsSection, Report, RunSection


def interval(value: float, low: float, high: float, n: int = 80, clusters: int = 40) -> Interval:
    return Interval(value=value, low=low, high=high, n=n, clusters=clusters)


def run_facts(**changed: Any) -> dict[str, Any]:
    return {
        "name": "planted",
        "created": "2026-11-21",
        "config_hash": "5f" * 32,
        "seed": 7,
        "constitution": {"id": "concise", "version": "1", "hash": "ab" * 32, "principles": 3},
        "policy": "embedded/smollm2-135m-instruct",
        "judge": "fake/shorter",
        "prompts": 64,
        "responses": 256,
        "truncated_share": 0.04,
    } | changed


def training(**changed: Any) -> dict[str, Any]:
    return {
        "base": "embedded/smollm2-135m-instruct",
        "steps": 30,
        "seconds": 192.0,
        "losses": [0.7 * 0.93**step + 0.02 * (step % 3) for step in range(30)],
        "accuracies": [0.5 + 0.015 * step for step in range(30)],
        "groups": 48,
        "dropped_responses": 0,
        "train_accuracy": 0.96,
        "held_out_accuracy": interval(0.93, 0.88, 0.97),
        "longer_wins": interval(0.08, 0.03, 0.14),
    } | changed


def full(**changed: Any) -> Report:
    sections: dict[str, Any] = {
        "run": run_facts(),
        "labels": {
            "requested": 384,
            "a": 150,
            "b": 151,
            "tie": 60,
            "unscored": {"no_label": 20, "rejected": 3},
        },
        "judge": {
            "certified": False,
            "order_consistency": interval(0.61, 0.55, 0.67),
            "first_position_rate": interval(0.42, 0.37, 0.47),
            "label_mass_mean": 0.981,
            "label_mass_min": 0.62,
            "judgments": 2304,
            "unscored_judgments": {"no_label": 41},
            "by_principle": {
                "brief": {"votes": 361, "p_first_mean": 0.503, "decided": 350},
                "clear": {"votes": 361, "p_first_mean": 0.49, "decided": 120},
                "on-topic": {"votes": 0, "p_first_mean": None, "decided": 0},
            },
        },
        "pairs": {
            "groups": 64,
            "comparisons": 301,
            "train": 241,
            "test": 60,
            "mean_probability": 0.87,
            "longer_chosen": interval(0.09, 0.05, 0.13),
        },
        "reward_model": training(),
        "dpo": training(
            losses=[0.7 - 0.008 * step + 0.02 * (step % 2) for step in range(30)],
            held_out_accuracy=interval(0.78, 0.69, 0.86),
            beta=0.1,
            kl=interval(3.14, 2.5, 3.8),
        ),
        "comparison": {
            "rm_dpo_agreement": interval(0.8, 0.71, 0.88),
            "win_rate": interval(0.64, 0.55, 0.72),
            "wins": 36,
            "losses": 18,
            "ties": 8,
            "unscored": 2,
            "mean_length_start": 61.2,
            "mean_length_dpo": 48.9,
            "length_difference": interval(-12.3, -15.1, -9.6),
            "examples": [
                {
                    "prompt": "How do I keep basil alive on a windowsill?",
                    "start": "Basil likes light.\n\nPut it where the sun reaches it, water it when "
                    "the soil is dry, and do not let it flower. " * 3,
                    "dpo": "Sun, water when dry, pinch off the flowers.",
                    "p_dpo": 0.91,
                },
                {"prompt": "Say hello.", "start": "Hi.", "dpo": "Hello there.", "p_dpo": 0.2},
            ],
        },
        "cost": {
            "judge": cost(2263, 41, 0, 910_000, 2263, 305.0),
            "sample": cost(64, 0, 0, 5_120, 15_800, 74.2),
            "compare": cost(130, 0, 1, 61_000, 6_400, 61.0),
        },
        "environment": {"python": "3.11.2", "torch": "2.13.0+cpu", "cpus": "2"},
        "warnings": ("The judge is not certified: a test warning.",),
    }
    return Report.model_validate(sections | changed)


def cost(made: int, stored: int, failed: int, prompt: int, completion: int, s: float) -> Any:
    return {
        "calls_made": made,
        "calls_from_store": stored,
        "calls_failed": failed,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "seconds": s,
    }


def bare() -> Report:
    return Report.model_validate({"run": run_facts(), "cost": {}, "environment": {}})


def says(report: Report, *parts: str) -> bool:
    """Whether one sentence of the headline holds every part."""
    return any(all(part in sentence for part in parts) for sentence in headline(report))


# What is refused.


def test_a_ledger_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(ValidationError, match="12 comparisons requested, 11 accounted for"):
        LabelsSection(requested=12, a=4, b=4, tie=2, unscored={"rejected": 1})


def test_a_ledger_that_adds_up_is_taken() -> None:
    taken = LabelsSection(requested=12, a=4, b=4, tie=2, unscored={"rejected": 1, "no_label": 1})
    assert taken.requested == 12


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="promts"):
        RunSection.model_validate(run_facts(promts=3))


def test_a_date_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError, match="yesterday"):
        RunSection.model_validate(run_facts(created="yesterday"))


def test_a_loss_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValidationError, match="finite"):
        full(reward_model=training(losses=[0.7, float("nan")]))


def test_the_top_level_keys_are_the_ones_that_others_rely_on() -> None:
    assert set(json.loads(bare().model_dump_json())) == {
        "run",
        "revisions",
        "sft",
        "labels",
        "judge",
        "certificate",
        "pairs",
        "reward_model",
        "dpo",
        "rl",
        "comparison",
        "cost",
        "environment",
        "warnings",
    }


# What the sentences say.


def test_a_clear_change_of_length_is_said_with_its_interval() -> None:
    assert (
        "The DPO policy answers 12.3 words shorter than the start policy [−15.1, −9.6]: "
        "the interval excludes zero."
    ) in headline(full())


def test_a_change_of_length_that_may_be_none_is_said_to_show_nothing() -> None:
    comparison = {"length_difference": interval(1.2, -2.0, 4.4)}
    assert (
        "The DPO policy answers 1.20 words longer than the start policy [−2.00, 4.40]: "
        "the interval contains zero: no difference is shown."
    ) in headline(full(comparison=comparison))


def test_a_win_rate_without_an_interval_shows_nothing() -> None:
    alone = Interval(value=1.0, low=None, high=None, n=4, clusters=1)
    report = full(comparison={"win_rate": alone})
    assert says(
        report, "wins 100 % (no interval)", "there is no interval, so no difference is shown"
    )


def test_a_policy_that_got_worse_is_said_to_be_worse() -> None:
    report = full(comparison={"win_rate": interval(0.31, 0.22, 0.4)})
    assert says(report, "wins 31 % [22 %, 40 %]", "excludes 50 %: the start policy is preferred")


def test_a_reward_model_at_chance_is_said_to_be_at_chance() -> None:
    chance = training(held_out_accuracy=interval(0.52, 0.41, 0.63), longer_wins=None)
    report = full(reward_model=chance)
    assert says(report, "The reward model orders 52 %", "contains 50 %: no difference from chance")


def test_a_reward_model_below_chance_is_said_to_be_wrong() -> None:
    report = full(reward_model=training(held_out_accuracy=interval(0.2, 0.1, 0.3)))
    assert says(report, "The reward model orders 20 %", "the wrong way round")


def test_a_model_that_length_alone_explains_is_said_so() -> None:
    assert says(full(), "The reward model", "“the longer answer wins” orders 8 %", "about as well")
    assert says(full(), "DPO's implicit reward orders 78 %", "92 %) does better")


def test_a_model_that_beats_length_is_not_explained_by_it() -> None:
    report = full(reward_model=training(longer_wins=interval(0.6, 0.5, 0.7)))
    assert says(report, "The reward model orders 93 %")
    assert not says(report, "The reward model orders 93 %", "Length alone")


def test_a_comparison_without_a_verdict_is_said_to_have_none() -> None:
    comparison = {"wins": 0, "losses": 0, "ties": 0, "unscored": 9}
    report = full(comparison=comparison)
    assert says(report, "No answer of the DPO policy got a verdict")
    assert "no verdict" in render_html(report)


def test_every_part_that_is_missing_is_said_to_be_missing() -> None:
    sentences = headline(bare())
    assert len(sentences) == 5
    # A part that is out of date is no longer there either.
    untrained = [s for s in sentences if s.endswith(" is not trained on the present labels.")]
    assert len(untrained) == 2
    assert all("yet." in s for s in sentences if s not in untrained)


def test_an_end_close_to_one_half_keeps_the_decimal_that_tells_its_side() -> None:
    report = full(comparison={"win_rate": interval(0.55, 0.502, 0.6)})
    assert says(report, "55.0 % [50.2 %, 60.0 %]", "excludes 50 %")


def test_nearly_all_is_not_rounded_to_all() -> None:
    report = full(reward_model=training(held_out_accuracy=interval(0.997, 0.99, 1.0)))
    assert says(report, "99.7 % [99.0 %, 100.0 %]")


# What is warned of.


def test_an_uncertified_judge_is_warned_of() -> None:
    assert "not certified" in " ".join(find_warnings(full()))


def test_a_judge_that_names_the_second_answer_always_is_warned_of() -> None:
    judge = full().judge
    assert judge is not None
    biased = judge.model_copy(
        update={
            "first_position_rate": interval(0.013, 0.006, 0.02),
            "order_consistency": interval(0.03, 0.01, 0.05),
        }
    )
    warned = " ".join(find_warnings(full().model_copy(update={"judge": biased})))
    assert "shown second in 99 % of its judgments" in warned
    assert "same winner in both orders in 3 %" in warned


def test_many_unscored_comparisons_and_cut_responses_are_warned_of() -> None:
    labels = {"requested": 10, "a": 4, "b": 4, "tie": 0, "unscored": {"timeout": 2}}
    report = full(labels=labels, run=run_facts(truncated_share=0.5))
    warned = " ".join(find_warnings(report))
    assert "20 % of the comparisons stayed unscored (timeout: 2)" in warned
    assert "cut 50 % of the responses" in warned


def test_held_out_figures_from_few_prompts_are_warned_of() -> None:
    few = training(held_out_accuracy=interval(0.9, 0.8, 1.0, n=12, clusters=4))
    assert "rest on 4 prompts" in " ".join(find_warnings(full(reward_model=few)))
    assert "rest on" not in " ".join(find_warnings(full()))


@pytest.mark.parametrize("figure", ["win_rate", "length_difference"])
def test_a_comparison_from_few_prompts_is_warned_of(figure: str) -> None:
    few = {figure: interval(0.9, 0.8, 1.0, n=12, clusters=4)}
    warned = " ".join(find_warnings(full(comparison=few)))
    assert "The comparison of the policies rests on 4 prompts" in warned
    assert "policies rests" not in " ".join(find_warnings(full()))


# What is written.


def test_the_same_report_twice_is_the_same_bytes(tmp_path: Path) -> None:
    write_report(full(), tmp_path / "one")
    write_report(full(), tmp_path / "two")
    for name in ("report.json", "report.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == [
        "report.html",
        "report.json",
    ]


def test_report_json_reads_back_as_the_same_report(tmp_path: Path) -> None:
    write_report(full(), tmp_path)
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert Report.model_validate_json(text) == full()
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    page = render_html(full())
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page
    assert "@import" not in page
    assert not re.search(r"<(link|img|iframe)\b", page)


def test_a_response_that_is_markup_is_shown_and_not_run() -> None:
    hostile = "<script>alert('x')</script></div><img src=x onerror=y> {{ 7 * 7 }}"
    example = {"prompt": hostile, "start": hostile, "dpo": hostile, "p_dpo": None}
    page = render_html(full(comparison={"examples": [example]}))
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") == 3
    assert "{{ 7 * 7 }}" in page


def test_the_ledger_is_shown_with_its_sum() -> None:
    assert "384&nbsp;=&nbsp;384" in render_html(full())


def test_the_page_shows_every_sentence_and_warning() -> None:
    page = render_html(full()).replace("\u00a0", " ").replace("&#39;", "'")
    for text in (*headline(full()), *full().warnings):
        assert text in page


def test_ids_on_the_page_are_unique() -> None:
    ids = re.findall(r'\bid="([^"]+)"', render_html(full()))
    assert len(ids) > 50
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:url\(#|href="#)([^")]+)', render_html(full()))
    assert set(used) <= set(ids)


def test_figures_take_their_colours_from_the_page() -> None:
    page = render_html(full())
    for figure in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        assert "var(--ink)" in figure
        assert not re.search(r"#[0-9a-f]{6}\b", figure)
    assert page.count("<svg") == 3


def test_a_run_that_has_only_begun_is_reported(tmp_path: Path) -> None:
    write_report(bare(), tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("not run yet") >= 5
    assert "<svg" not in page


def test_a_figure_that_a_stage_could_not_compute_is_no_data_not_a_stage_to_run() -> None:
    computed = render_html(full())
    missing = render_html(full(dpo=training(beta=0.1, kl=None, held_out_accuracy=None)))
    assert "no data" not in computed
    assert missing.count("no data") == 2
    assert "not run yet" not in missing


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "rlaif.evaluate.plots", raising=False)
    monkeypatch.delattr(rlaif.evaluate, "plots", raising=False)


@pytest.mark.usefixtures("without_matplotlib")
def test_labels_alone_are_reported_without_matplotlib() -> None:
    page = render_html(full(reward_model=None, dpo=None, comparison=None))
    assert "384&nbsp;=&nbsp;384" in page


@pytest.mark.usefixtures("without_matplotlib")
def test_a_trained_run_without_matplotlib_names_what_to_install() -> None:
    with pytest.raises(SetupError, match=r"needs matplotlib \(pip install 'rlaif\[train\]'\)"):
        render_html(full())


def test_training_of_a_single_step_is_drawn() -> None:
    assert "<svg" in render_html(full(reward_model=training(losses=[0.7], accuracies=[0.5])))


def test_stages_are_shown_in_the_order_of_the_run_with_a_total() -> None:
    page = render_html(full())
    shown = [
        page.index(f'<th scope="row">{s}</th>') for s in ("sample", "judge", "compare", "total")
    ]
    assert shown == sorted(shown)
    assert "2,457" in page


def test_a_directory_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot be used") as caught:
        write_report(bare(), tmp_path / "file")
    assert "\n" not in str(caught.value)


def test_the_summary_figure_is_a_png_and_the_same_twice(tmp_path: Path) -> None:
    draw_summary(full(), tmp_path / "a.png")
    draw_summary(full(), tmp_path / "b.png")
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert data == (tmp_path / "b.png").read_bytes()


def test_a_summary_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_summary(bare(), tmp_path / "a.png")
