"""Several judges, tiers, sampled principles and chosen pairs, through the stages with scripted
judges that really read their prompts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Finished
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import SetupError, TooManyFailures
from rlaif.files import read_jsonl
from rlaif.judge.cascade import doubt, split
from rlaif.judge.config import CascadeConfig
from rlaif.recipe import execute, load_run
from rlaif.types import Comparison, Judgment, Response

STAGES = ("sample", "certify", "judge", "pairs")
SMALL = ("sample.limit=4", "sample.k=4", "sample.max_tokens=60")
FAULTS = ("fake/faulty?rate=0.3", "fake/faulty?rate=0.3&logprobs=no")


def run(out: Path, *changes: str, stages: tuple[str, ...] = STAGES) -> dict[str, Any]:
    config, directory = load_run("smoke", [*SMALL, *changes], out)
    execute(config, directory, stages, reconfigure=False)
    return report(out)


def report(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return loaded


def comparisons(out: Path) -> list[Comparison]:
    return read_jsonl(out / "comparisons.jsonl", Comparison)


def judgments(out: Path) -> list[Judgment]:
    return read_jsonl(out / "judgments.jsonl", Judgment)


def test_a_panel_keeps_what_each_judge_said_in_every_row(tmp_path: Path) -> None:
    panel = "judge.panel=[{model: fake/longer}, {model: fake/first}]"
    found = run(tmp_path, panel, stages=("sample", "judge"))
    names = ["fake/shorter", "fake/longer", "fake/first"]
    assert found["judge"]["judges"] == names
    for c in comparisons(tmp_path):
        shorter, longer, first = (c.by_judge[name] for name in names)
        assert None not in (shorter, longer, first)
        assert first == pytest.approx(0.5)
        assert longer == pytest.approx(1.0 - shorter)  # type: ignore[operator]
        assert c.p_first == pytest.approx(0.5)
        assert c.outcome == "tie"
        assert c.disagreement == pytest.approx(abs(shorter - longer))  # type: ignore[operator]


def test_the_dataset_shows_who_said_what(tmp_path: Path) -> None:
    run(tmp_path, "judge.panel=[{model: fake/first}]")
    rows = pq.read_table(next((tmp_path / "preferences" / "data").glob("train*"))).to_pylist()
    for row in rows:
        assert row["judge"] == "panel"
        assert {said["judge"] for said in row["by_judge"]} == {"fake/shorter", "fake/first"}
        said = [s["p_chosen"] for s in row["by_judge"]]
        assert row["probability"] == pytest.approx(sum(said) / 2)
        assert row["disagreement"] == pytest.approx(abs(said[0] - said[1]))


def test_one_model_asked_in_two_ways_signs_as_two_judges(tmp_path: Path) -> None:
    found = run(tmp_path, "judge.panel=[{model: fake/shorter, mode: structured}]")
    assert found["judge"]["judges"] == ["fake/shorter", "fake/shorter [structured]"]


def test_a_cascade_asks_the_strong_judge_only_where_there_is_doubt(tmp_path: Path) -> None:
    found = run(tmp_path, "judge.cascade={model: fake/longer, margin: 0.1}")
    rows = comparisons(tmp_path)
    asked = [c for c in rows if c.escalated]
    assert 0 < len(asked) < len(rows)
    assert found["judge"]["escalated"] == Counter(c.escalated for c in asked)
    for c in rows:
        cheap = c.by_judge["fake/shorter"] if c.escalated else c.p_first
        assert cheap is not None
        assert (abs(cheap - 0.5) <= 0.1) == bool(c.escalated)
        assert c.judge == ("fake/longer" if c.escalated else "fake/shorter")
    strong = {j.comparison_id for j in judgments(tmp_path) if j.judge == "fake/longer"}
    assert strong == {c.id for c in asked}


def test_a_positional_judge_hands_everything_to_the_strong_one(tmp_path: Path) -> None:
    changes = ("judge.model=fake/first", "judge.cascade={model: fake/shorter, margin: 0}")
    found = run(tmp_path, *changes)
    assert found["judge"]["escalated"] == {"margin": found["labels"]["requested"]}


@pytest.mark.parametrize(
    ("p", "votes", "orders", "why"),
    [
        (None, {}, (0.9, None), "unscored"),
        (0.55, {"x": 0.55}, (0.6, 0.5), "margin"),
        (0.7, {"x": 0.7}, (0.9, 0.45), "orders"),
        (0.7, {"x": 0.9, "y": 0.4}, (0.9, 0.9), "principles"),
        (0.7, {"x": 0.9, "y": 0.5}, (0.9, 0.6), ""),
    ],
)
def test_what_makes_doubt(
    p: float | None, votes: dict[str, float], orders: tuple[float | None, float | None], why: str
) -> None:
    said = [
        Judgment(
            comparison_id="c",
            judge="m",
            principle_id="x",
            order="forward" if i == 0 else "swapped",
            p_first=q,
            label_mass=None,
            reason="" if q is not None else "empty",
            calls=(),
        )
        for i, q in enumerate(orders)
    ]
    cascade = CascadeConfig(model="fake/shorter")
    assert doubt(p, votes, split(said), cascade, 0.01) == why
    others = tuple(trigger for trigger in cascade.when if trigger != why)
    if why:
        without = CascadeConfig.model_validate({"model": "fake/shorter", "when": others})
        assert doubt(p, votes, split(said), without, 0.01) == ""


def test_one_principle_is_drawn_a_comparison_and_the_seed_decides(tmp_path: Path) -> None:
    drawn = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(
            tmp_path / name,
            "judge.principles=sample",
            f"seed={seed}",
            "judge.constitution=harmless",
        )
        asked = {j.comparison_id: j.principle_id for j in judgments(tmp_path / name)}
        assert len(judgments(tmp_path / name)) == 2 * len(asked) == 2 * 24
        drawn.append(asked)
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == set(drawn[2])
    assert drawn[0] != drawn[2]
    assert len(set(drawn[0].values())) > 5


def test_a_second_tier_is_asked_only_where_the_first_is_indifferent(tmp_path: Path) -> None:
    constitution = tmp_path / "tiers.yaml"
    constitution.write_text(
        "id: tiers\nversion: '1'\ndescription: Two tiers.\nprinciples:\n"
        "  - {id: second, tier: 2, text: Be kind.}\n  - {id: first, text: Be short.}\n"
    )
    run(tmp_path / "out", "judge.principles=tiers", f"judge.constitution={constitution}")
    asked: dict[str, set[str]] = {}
    for j in judgments(tmp_path / "out"):
        asked.setdefault(j.comparison_id, set()).add(j.principle_id)
    rows = comparisons(tmp_path / "out")
    for c in rows:
        undecided = abs(c.votes["first"] - 0.5) <= 0.01
        assert asked[c.id] == ({"first", "second"} if undecided else {"first"})
    assert {len(principles) for principles in asked.values()} == {1, 2}


@pytest.mark.parametrize(("kind", "pairs"), [("random", 4), ("adaptive", 4), ("adjacent", 3)])
def test_only_the_chosen_pairs_are_asked_about(kind: str, pairs: int, tmp_path: Path) -> None:
    changes = [f"judge.comparisons={kind}"]
    if kind != "adjacent":
        changes.append(f"judge.comparisons_per_prompt={pairs}")
    found = run(tmp_path, *changes)
    assert found["labels"]["requested"] == 4 * pairs
    assert Counter(c.prompt_id for c in comparisons(tmp_path)).most_common()[0][1] == pairs
    again = report(tmp_path)["cost"]["judge"]["calls_made"]
    run(tmp_path, *changes)
    assert again > 0
    assert report(tmp_path)["cost"]["judge"]["calls_made"] == 0


def test_an_adaptive_judge_with_a_rule_ranks_all_responses_with_fewer_questions(
    tmp_path: Path,
) -> None:
    run(tmp_path, "judge.comparisons=adaptive", "judge.comparisons_per_prompt=5")
    texts = {r.id: len(r.text) for r in read_jsonl(tmp_path / "responses.jsonl", Response)}
    for c in comparisons(tmp_path):
        if c.outcome != "tie":
            assert (texts[c.first] < texts[c.second]) == (c.outcome == "A")


@pytest.mark.parametrize(
    "changes",
    [
        ("judge.comparisons=adaptive",),
        ("judge.comparisons_per_prompt=3",),
        ("judge.mode=votes",),
        ("judge.labels=[A, a]",),
        ("judge.gate={min_agreement: 0.7}",),
        ("judge.gate={gold: [concise], certificate: x.json}",),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(changes: tuple[str, ...]) -> None:
    with pytest.raises(SetupError, match="judge"):
        load_run("smoke", changes, None)


@pytest.mark.parametrize("mode", ["pointwise", "score"])
def test_a_panel_member_without_log_probabilities_is_refused_before_anyone_is_asked(
    mode: str, run_cli: Any
) -> None:
    run_cli("sample", "smoke", *SMALL, "--out", "out")
    changes = f"judge.panel=[{{model: 'fake/longer?logprobs=no', mode: {mode}}}]"
    done: Finished = run_cli("judge", changes, "--out", "out", "--reconfigure")
    assert done.refused().startswith(f"judge.panel[0].mode: mode {mode} needs the log-prob")


@pytest.mark.parametrize("model", FAULTS)
@pytest.mark.parametrize(
    "mode", ["pairwise", "critique", "reasoning", "structured", "votes", "pointwise", "score"]
)
def test_the_ledgers_add_up_under_every_fault_in_every_mode(
    model: str, mode: str, tmp_path: Path
) -> None:
    if "logprobs=no" in model and mode in ("pointwise", "score"):
        pytest.skip("these need log-probabilities; another test shows that it says so")
    changes = [f"judge.model={model}", f"judge.mode={mode}", "judge.max_unscored=1"]
    if mode == "votes":
        changes.append("judge.temperature=1")
    labels = run(tmp_path, *changes)["labels"]
    assert labels["requested"] == 4 * 6
    for counts in (labels, *labels["by_principle"].values(), *labels["by_judge"].values()):
        lost = sum(counts["unscored"].values())
        assert counts["requested"] == counts["a"] + counts["b"] + counts["tie"] + lost
    assert all(counts["requested"] == 24 for counts in labels["by_principle"].values())
    assert sum(labels["by_judge"][model]["unscored"].values()) > 0


@pytest.mark.parametrize("mode", ["pairwise", "structured", "score"])
def test_a_judge_that_always_refuses_gives_no_pairs_and_an_exit_code(
    mode: str, tmp_path: Path
) -> None:
    with pytest.raises(TooManyFailures, match="24 of 24 comparisons ended unscored"):
        run(tmp_path, "judge.model=fake/refuse", f"judge.mode={mode}")
    assert report(tmp_path)["labels"]["a"] == report(tmp_path)["labels"]["b"] == 0


def test_a_purely_positional_judge_gives_one_half_and_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(TooManyFailures, match=r"none of the 24 comparisons has a winner \(24 ties"):
        run(tmp_path, "judge.model=fake/first", "judge.tie_margin=0")
    for c in comparisons(tmp_path):
        assert c.p_first == pytest.approx(0.5, abs=1e-9)


@given(clamp=st.floats(0.01, 0.5))
@settings(max_examples=5)
def test_clamped_probabilities_stay_in_their_band_and_keep_their_winner(
    clamp: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    free, kept = tmp_path_factory.mktemp("free"), tmp_path_factory.mktemp("kept")
    run(free)
    run(kept, f"judge.clamp={clamp}")
    for one, other in zip(comparisons(free), comparisons(kept), strict=True):
        assert one.p_first is not None
        assert other.p_first is not None
        assert abs(other.p_first - 0.5) <= clamp + 1e-9
        assert (one.p_first > 0.5) == (other.p_first > 0.5)
