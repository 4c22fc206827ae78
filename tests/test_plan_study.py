"""What a study and tables of labeler alignment would take, held against what they then take."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import Finished

from rlaif.arms import Trained
from rlaif.config import dump_config
from rlaif.files import write_text
from rlaif.models import embedded
from rlaif.models.prices import Prices
from rlaif.plan.estimate import Estimate, Plan, estimate
from rlaif.plan.figures import Figure, exactly
from rlaif.plan.study import ANOTHER, UNANSWERED, UNDECIDED, trainings
from rlaif.plan.table import lines
from rlaif.recipe import KINDS, LeeConfig, StudyConfig, load_as
from rlaif.recipe.running import open_transformers
from rlaif.recipe.study import STAGES
from rlaif.workspace import STAMP, Workspace

pytestmark = pytest.mark.usefixtures("one_thread")

Cli = Callable[..., Finished]
CONSTITUTION = "id: one\nprinciples:\n  - {id: concise, text: Be brief.}\n"
WORDS = ("tea", "maps", "rain", "cats", "trains", "bread", "stars", "chess")
PAIRS = 16


def people(folder: Path) -> None:
    """Pairs of which people mostly choose the longer answer, and a constitution of one
    principle."""
    rows = []
    for i in range(PAIRS):
        sides = (f"It is a long story about {WORDS[i % 8]}.", f"About {WORDS[i % 8]}.")
        chosen, rejected = sides if i % 4 else sides[::-1]
        prompt = f"What of {WORDS[i % 8]}, number {i}?"
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "pairs.jsonl").write_text(text, encoding="utf-8")
    (folder / "one.yaml").write_text(CONSTITUTION, encoding="utf-8")


def study(folder: Path, *changes: str) -> StudyConfig:
    given = (
        f"human.path={folder / 'pairs.jsonl'}",
        f"judge.constitution={folder / 'one.yaml'}",
        "judge.model=fake/shorter",
        "policy.model=embedded/tiny-random",
        "evaluation.judge=fake/longer",
        "arms=[human,ai_soft]",
        "seeds=1",
        "learning_curve=[]",
        "answers.engine=transformers",
        "answers.max_tokens=8",
        "answers.best_of=3",
        "answers.samples=2",
        "answers.refusal_prompts=1",
        "answers.harmful=sensitive",
        "reward_model.learning_rate=1e-3",
        "dpo.learning_rate=1e-3",
    )
    config, _ = load_as(KINDS["human"], "rlhf-vs-rlaif", [*given, *changes], folder / "run")
    assert isinstance(config, StudyConfig)
    return config


def planned(config: StudyConfig | LeeConfig, out: Path, *beside: Path) -> Plan:
    return estimate(config, out, Prices.load(None), beside)


def stage(plan: Plan, name: str) -> Estimate:
    (found,) = [e for e in plan.stages if e.stage == name]
    return found


def held_out(out: Path) -> int:
    splits = json.loads((out / "splits.json").read_text())
    return sum(split == "test" for split in splits.values())


class Made(NamedTuple):
    """A study planned, run and planned again."""

    folder: Path
    before: Plan
    cost: dict[str, Any]
    after: Plan

    @property
    def out(self) -> Path:
        return self.folder / "run"


async def run_stages(config: StudyConfig, out: Path) -> None:
    """All of a study but its report, which asks nothing."""
    work = Workspace(out, config.seed, {"transformers": open_transformers})
    try:
        for run in STAGES.values():
            await run(config, work)
    finally:
        await work.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("study")
    people(folder)
    config, out = study(folder), folder / "run"
    before = planned(config, out)
    assert not out.exists()
    asyncio.run(run_stages(config, out))
    write_text(out / "config.yaml", dump_config(config))
    cost = json.loads((out / "parts" / "cost.json").read_text(encoding="utf-8"))["value"]
    return Made(folder, before, cost, planned(config, out))


def test_what_a_study_asks_for_was_planned(made: Made) -> None:
    assert [e.stage for e in made.before.stages] == ["human", "judge", "arms", "head-to-head"]
    assert stage(made.before, "human").calls == exactly(0)
    for name in ("judge", "arms"):
        assert made.cost[name]["calls_failed"] == 0
        assert stage(made.before, name).calls == exactly(made.cost[name]["calls_made"])
    # Both orders of two answers of each arm against the start's, of one arm against the other's,
    # and of each reward model's pick.
    most = held_out(made.out) * 2 * (2 + 2 + 2 + 1 + 1)
    assert stage(made.before, "head-to-head").calls == exactly(most)
    assert 0 < made.cost["head-to-head"]["calls_made"] <= most
    assert {UNDECIDED, UNANSWERED} <= set(made.before.assumed)


def test_what_a_study_was_answered_is_not_planned_again(made: Made) -> None:
    assert made.after.total.calls == exactly(0)
    assert not {UNDECIDED, UNANSWERED} & set(made.after.assumed)
    for name in ("judge", "arms", "head-to-head"):
        assert stage(made.after, name).stored == made.cost[name]["calls_made"]
    assert stage(made.after, "arms").seconds == exactly(0)


def test_a_change_that_trains_anew_is_planned_with_all_that_hangs_on_it(made: Made) -> None:
    for change in ("dpo.learning_rate=2e-3", "answers.max_tokens=9", "seed=1", "keep_weights=true"):
        config = study(made.folder, change)
        again, fresh = planned(config, made.out), planned(config, made.folder / "elsewhere")
        assert ANOTHER in again.assumed
        assert stage(again, "head-to-head").calls == stage(fresh, "head-to-head").calls
        seconds = stage(again, "arms").seconds
        assert seconds is None or seconds.point > 0.0


def test_a_study_of_fewer_pairs_is_planned_beside_the_answers_of_more(made: Made) -> None:
    assert ANOTHER in planned(study(made.folder, "human.limit=8"), made.out).assumed


def test_comparisons_of_answers_that_are_there_are_counted_as_they_are(
    made: Made, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made.folder, tmp_path / "study"))
    with sqlite3.connect(folder / "run" / "calls.sqlite") as store:
        store.execute("DELETE FROM calls WHERE request ->> '$.model' = 'fake/longer'")
    store.close()
    plan = planned(study(made.folder), folder / "run")
    assert stage(plan, "head-to-head").calls == exactly(made.cost["head-to-head"]["calls_made"])
    assert stage(plan, "arms").calls == exactly(0)


def test_every_policy_answers_the_held_out_prompts_up_to_the_limit_and_both_refusal_sets(
    tmp_path: Path,
) -> None:
    people(tmp_path)
    changes = ("arms=[human,ai_soft,noise_matched]", "seeds=2", "answers.refusal_prompts=3")
    plan = planned(study(tmp_path, *changes, "answers.limit=2"), tmp_path / "run")
    assert stage(plan, "arms").calls == exactly((2 + 2 * 3) * (1 + 3 * 2))
    # Per seed, three arms against the start and two against people's; three picks of one.
    assert stage(plan, "head-to-head").calls == exactly(2 * 2 * 2 * (2 * (3 + 2) + 3))
    assert sorted(tmp_path.iterdir()) == [tmp_path / "one.yaml", tmp_path / "pairs.jsonl"]


def test_the_policies_are_compared_at_the_price_of_the_evaluating_judge(tmp_path: Path) -> None:
    people(tmp_path)
    changes = ("judge.model=openai/gpt-4.1", "evaluation.judge=openai/not-known")
    plan = planned(study(tmp_path, *changes), tmp_path / "run")
    assert plan.unpriced == ("openai/not-known",)
    assert stage(plan, "head-to-head").usd is None
    judging = stage(plan, "judge")
    assert judging.usd is not None
    # A verdict on each pair in each order; 2 and 8 dollars a million.
    assert judging.output_tokens == exactly(PAIRS * 2)
    usd = (judging.input_tokens.point * 2 + judging.output_tokens.point * 8) / 1e6
    assert judging.usd.point == pytest.approx(usd)


def test_a_gate_is_asked_for_before_the_judge_labels(tmp_path: Path) -> None:
    people(tmp_path)
    plan = planned(study(tmp_path, "judge.gate={gold: [concise]}"), tmp_path / "run")
    assert [e.stage for e in plan.stages][:3] == ["human", "certify", "judge"]
    assert stage(plan, "certify").calls.point > 0


def earlier(folder: Path, config: StudyConfig) -> Path:
    """A study that took 3 s a step for reward models and 5 s for policies."""
    write_text(folder / "config.yaml", dump_config(config))
    for kind, seconds in (("reward_model", 12.0), ("dpo", 20.0)):
        trained = Trained(
            arm="human",
            seed=0,
            share=1.0,
            kind=kind,
            pairs=9,
            steps=4,
            seconds=seconds,
            losses=(0.5,),
            response_tokens=9,
            dropped_responses=0,
        )
        text = trained.model_dump_json()
        write_text(folder / "arms" / "human-0" / kind / "trained.json", text)
    return folder


def test_trainings_take_as_long_as_in_a_study_from_the_same_weights_and_are_counted_once(
    tmp_path: Path,
) -> None:
    people(tmp_path)
    changes = ("seeds=2", "learning_curve=[0.25,0.5]", "human.test_fraction=0.5")
    steps = ("reward_model.batch_groups=2", "dpo.batch_groups=4")
    config, out = study(tmp_path, *changes, *steps), tmp_path / "run"
    same = earlier(tmp_path / "same", config)
    update = {
        "policy": config.policy.model_copy(update={"model": "embedded/smollm2-135m-instruct"})
    }
    other = earlier(tmp_path / "other", config.model_copy(update=update))
    assert stage(planned(config, out, other), "arms").seconds is None
    # 8 groups: 4 steps of 3 s and 2 of 5 s for each of 2 arms and 2 seeds, and 1 and 2 steps of 3 s
    # on a quarter and a half of them. Then half and double; answers are of unknown time.
    whole, parts = 4 * 3.0 + 2 * 5.0, (1 + 2) * 3.0
    assert trained(config, out, same) == pytest.approx(4 * (whole + parts))
    write_text(out / "arms" / "human-0" / "reward_model" / STAMP, "")
    write_text(out / "arms" / "ai_soft-1-0.5" / "reward_model" / STAMP, "")
    assert trained(config, out, same) == pytest.approx(4 * (whole + parts) - 4 * 3.0 - 2 * 3.0)


def trained(config: StudyConfig, out: Path, *beside: Path) -> float:
    seconds, _ = trainings(config, 8, out, beside, stands=True)
    assert seconds is not None
    assert seconds == Figure(seconds.point / 2, seconds.point, seconds.point * 2)
    return seconds.point


def test_weights_that_are_kept_take_the_disk_of_all_and_others_that_of_one(tmp_path: Path) -> None:
    embedded.prepare("tiny-random", print)
    people(tmp_path)
    sizes = []
    for keep in ("true", "false"):
        config = study(tmp_path, f"keep_weights={keep}", "seeds=3")
        _, size = trainings(config, 8, tmp_path / "run", [], stands=True)
        assert size is not None
        sizes.append(size.point)
    assert sizes[0] == pytest.approx(sizes[1] * 2 * 2 * 3)
    (told,) = [t for t in lines(planned(config, tmp_path / "run")) if t.startswith("memory")]
    assert told.startswith("memory at most: arms ")


# Tables.


PEOPLE = ("human.path=pairs.jsonl", "human.limit=3", "judge.constitution=one.yaml")


def tables(*changes: str) -> LeeConfig:
    given = (*PEOPLE, *changes)
    config, _ = load_as(KINDS["shots"], "lee-tables", given, None)
    assert isinstance(config, LeeConfig)
    return config


def test_what_the_tables_ask_for_was_planned(run_cli: Cli, empty_place: Path) -> None:
    people(empty_place)
    given = ("judge.models=[fake/noisy]", "shots=[0,1]", "self_consistency=3")
    out = empty_place / "outputs" / "lee-tables"
    before = planned(tables(*given), out)
    assert [e.stage for e in before.stages] == ["lee-tables"]
    assert not out.exists()
    assert run_cli("run", "lee-tables", *PEOPLE, *given).code == 0
    made = json.loads((out / "parts" / "cost.json").read_text())["value"]["lee-tables"]
    assert made["calls_failed"] == 0
    assert before.total.calls == exactly(made["calls_made"])
    after = planned(tables(*given), out)
    assert (after.total.calls, after.total.stored) == (exactly(0), made["calls_made"])
    # Another judge is asked as often.
    both = planned(tables("judge.models=[fake/noisy,fake/first]", *given[1:]), out)
    assert both.total.calls == exactly(made["calls_made"])
    assert both.total.stored == made["calls_made"]


def test_the_command_plans_a_study_and_tables(run_cli: Cli, empty_place: Path) -> None:
    people(empty_place)
    common = ("human.path=pairs.jsonl", "judge.constitution=one.yaml")
    policy = "policy.model=embedded/tiny-random"
    told = run_cli("plan", "rlhf-vs-rlaif", *common, policy, "judge.model=fake/shorter")
    assert told.code == 0, told
    (row,) = [line.split() for line in told.out.splitlines() if line.startswith("judge ")]
    assert row[:3] == ["judge", str(PAIRS * 2), "0"]
    told = run_cli("plan", "lee-tables", *common, "judge.models=[fake/first]", "--json")
    assert told.code == 0, told
    assert json.loads(told.out)["stages"]["lee-tables"]["calls"]["point"] > 0


STUDY = ("rlhf-vs-rlaif", "judge.model=fake/shorter", "policy.model=embedded/tiny-random")
TABLES = ("lee-tables", "judge.models=[fake/first]")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (STUDY, "human.path: is missing"),
        (TABLES, "human.path: found NoneType"),
        ((*STUDY, "human.path=nowhere.jsonl"), "nowhere.jsonl"),
        ((*TABLES, "human.path=nowhere.jsonl"), "nowhere.jsonl"),
        ((*STUDY, "human.path=pairs.jsonl", "--pilot", "2"), "--pilot: asks about the first"),
        ((*TABLES, "human.path=pairs.jsonl", "--pilot", "2"), "--pilot: asks about the first"),
        ((*STUDY, "human.path=pairs.jsonl", "policy.model=fake/policy"), "gives no weights"),
        (
            (*STUDY, "human.path=pairs.jsonl", "evaluation.judge=vllm/./no"),
            "no: evaluation.judge: is not a folder",
        ),
        (
            (*STUDY, "human.path=pairs.jsonl", "dpo.base=embedded/tiny-random"),
            "reward_model.base: differs from dpo.base",
        ),
        (
            ("lee-tables", "judge.models=[fake/frist]", "human.path=pairs.jsonl"),
            "judge.models[0].model: no fake model 'frist'",
        ),
        ((*TABLES, "human.path=pairs.jsonl", "shots=[0, 30]"), "shots: asks for 30 examples"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], said: str, run_cli: Cli, empty_place: Path
) -> None:
    people(empty_place)
    assert said in run_cli("plan", *arguments).refused()
