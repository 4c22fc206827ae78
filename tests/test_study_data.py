"""People's data on its way into a study: what is used, what is left out, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from conftest import Finished

from rlaif.errors import SetupError
from rlaif.evaluate.study.records import HumanSection
from rlaif.files import read_jsonl
from rlaif.models import embedded
from rlaif.recipe import KINDS, load_as
from rlaif.stages import human
from rlaif.stages.human import HumanConfig
from rlaif.train.groups import encode_groups
from rlaif.train.lengths import pair_lengths
from rlaif.train.loading import load_tokenizer
from rlaif.types import PreferenceGroup
from rlaif.workspace import Workspace

Row = dict[str, Any]


def pair(prompt: str, chosen: str, rejected: str) -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def labelled(prompt: str, one: str, other: str, label: int) -> Row:
    """1 or 2: which is better; 0: a tie."""
    return {"prompt": prompt, "response_a": one, "response_b": other, "label": label}


PLAIN = [pair(f"Question {i}?", f"good {i}", f"bad {i}") for i in range(12)]


def written(path: Path, rows: Sequence[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(
    folder: Path, rows: Sequence[Row], test: Sequence[Row] | None = None, **fields: Any
) -> tuple[list[PreferenceGroup], HumanSection]:
    """What the stage makes of rows."""
    path = written(folder / "rows.jsonl", rows)
    test_path = None if test is None else written(folder / "test.jsonl", test)
    return made(folder, HumanConfig(path=path, test_path=test_path, **fields))


def made(folder: Path, config: HumanConfig) -> tuple[list[PreferenceGroup], HumanSection]:
    async def run() -> HumanSection:
        work = Workspace(folder / "run", 0, {})
        try:
            await human.run(config, work)
            return HumanSection.model_validate(work.part("human"))
        finally:
            await work.close()

    section = asyncio.run(run())
    return read_jsonl(folder / "run" / "human.jsonl", PreferenceGroup), section


def test_every_pair_is_a_group_of_two_in_one_split(tmp_path: Path) -> None:
    groups, section = read(tmp_path, PLAIN)
    assert len(groups) == 12
    assert section.groups == section.pairs == {"train": 9, "test": 3}
    assert section.responses == {2: 12}
    for group in groups:
        (c,) = group.comparisons
        winner = c.first if c.p_first == 1.0 else c.second
        assert group.responses[winner].startswith("good")
        assert group.labeler == "human"


def test_ties_are_counted_and_not_trained_on(tmp_path: Path) -> None:
    rows = [labelled(f"Question {i}?", "one", "other", 1 + i % 2) for i in range(8)]
    groups, section = read(tmp_path, [*rows, labelled("Level?", "one", "other", 0)])
    assert (len(groups), section.level, section.rows) == (8, 1, 9)
    assert all(g.prompt.messages[0].content != "Level?" for g in groups)


def test_a_pair_that_is_said_twice_counts_once(tmp_path: Path) -> None:
    groups, section = read(tmp_path, [*PLAIN, PLAIN[0], PLAIN[0]])
    assert (len(groups), section.repeated, section.contradicted) == (12, 2, 0)
    assert all(len(g.comparisons) == 1 for g in groups)


def test_rows_that_contradict_each_other_decide_nothing(tmp_path: Path) -> None:
    against = pair("Question 0?", "bad 0", "good 0")
    groups, section = read(tmp_path, [*PLAIN, against, PLAIN[0]])
    assert (len(groups), section.repeated, section.contradicted) == (11, 0, 3)


def test_identical_responses_are_skipped_with_the_reason(tmp_path: Path) -> None:
    _, section = read(tmp_path, [*PLAIN, pair("Same?", "so", "so ")])
    assert section.skipped == {"identical responses": 1}


def test_a_ranking_of_four_is_used_whole_as_one_group(tmp_path: Path) -> None:
    best_first = ["first", "second", "third", "fourth"]
    ranked = [pair("Ranked?", a, b) for a, b in combinations(best_first, 2)]
    groups, section = read(tmp_path, [*PLAIN, *ranked])
    (group,) = [g for g in groups if g.prompt.messages[0].content == "Ranked?"]
    assert sorted(group.responses) == sorted(best_first)
    assert len(group.comparisons) == 6
    # A prompt is one vote, whatever the number of its pairs.
    assert sum(c.weight for c in group.comparisons) == pytest.approx(1.0)
    wins = [0] * 4
    for c in group.comparisons:
        wins[c.first if c.p_first == 1.0 else c.second] += 1
    assert {group.responses[k]: n for k, n in enumerate(wins)} == {
        "first": 3,
        "second": 2,
        "third": 1,
        "fourth": 0,
    }
    assert section.responses == {2: 12, 4: 1}


def test_a_conversation_stays_in_one_split_at_all_of_its_turns(tmp_path: Path) -> None:
    rows = []
    for i in range(20):
        asked = [{"role": "user", "content": f"Topic {i}?"}]
        later = [*asked, {"role": "assistant", "content": "Yes."}]
        later.append({"role": "user", "content": "More?"})
        rows += [
            {"prompt": asked, "chosen": "good", "rejected": "bad"},
            {"prompt": later, "chosen": "good", "rejected": "bad"},
        ]
    groups, _ = read(tmp_path, rows)
    splits: dict[str, set[str]] = {}
    for g in groups:
        splits.setdefault(g.prompt.messages[0].content, set()).add(g.split)
    assert len(splits) == 20
    assert all(len(of) == 1 for of in splits.values())


def test_what_is_held_out_is_taken_out_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The same first turn in other case and spacing is the same conversation.
    test = [pair("QUESTION  3?", "good", "bad"), pair("Fresh?", "good", "bad")]
    groups, section = read(tmp_path, PLAIN, test)
    assert len(section.leaked) == 1
    assert section.pairs == {"train": 11, "test": 2}
    assert all(g.prompt.messages[0].content != "Question 3?" for g in groups if g.split == "train")
    assert "1 prompts of" in capsys.readouterr().err


def test_a_smaller_limit_takes_a_part_of_a_larger_ones_prompts(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    four, _ = read(tmp_path / "a", PLAIN, limit=4)
    eight, _ = read(tmp_path / "b", PLAIN, limit=8)
    assert len(four) == 4
    assert {g.prompt.id for g in four} < {g.prompt.id for g in eight}


def test_a_set_in_which_nothing_is_decided_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="of 3 rows none says which response is better"):
        read(tmp_path, [labelled(f"Q{i}?", "one", "other", 0) for i in range(3)])


def test_a_set_whose_pairs_contradict_each_other_throughout_is_refused(tmp_path: Path) -> None:
    rows = [pair(f"Q{i}?", *sides) for i in range(4) for sides in (("a", "b"), ("b", "a"))]
    with pytest.raises(SetupError, match=r"no decided pair to train on .*8 contradicted"):
        read(tmp_path, rows)


def test_a_pair_with_an_empty_response_is_left_out_and_counted(tmp_path: Path) -> None:
    groups, section = read(tmp_path, [*PLAIN, pair("Empty?", "good", " ")])
    assert len(groups) == len(PLAIN)
    assert section.skipped == {"empty response": 1}
    assert section.rows == len(PLAIN) + 1


def test_a_set_is_not_held_out_from_itself(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", PLAIN)
    with pytest.raises(SetupError, match=r"human\.test_path: is human\.path as well"):
        made(tmp_path, HumanConfig(path=path, test_path=path))


def test_data_that_has_changed_under_a_study_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read(tmp_path, PLAIN)
    read(tmp_path, PLAIN)
    assert "has changed" not in capsys.readouterr().err
    read(tmp_path, PLAIN[:-1])
    assert "human: the data has changed since the last time" in capsys.readouterr().err


def test_a_test_set_of_the_same_conversations_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="leaves no decided pair to train on"):
        read(tmp_path, PLAIN, PLAIN)


@pytest.mark.parametrize("field", ["path", "test_path"])
def test_a_file_that_is_not_there_is_named_with_its_field(tmp_path: Path, field: str) -> None:
    paths = {
        "path": written(tmp_path / "rows.jsonl", PLAIN),
        field: str(tmp_path / "nowhere.jsonl"),
    }
    with pytest.raises(SetupError, match=r"nowhere\.jsonl' is neither a file") as refused:
        made(tmp_path, HumanConfig.model_validate(paths))
    assert refused.value.field == f"human.{field}"


def test_data_that_is_gone_leaves_what_was_made_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read(tmp_path, PLAIN)
    path = tmp_path / "rows.jsonl"
    path.unlink()
    assert made(tmp_path, HumanConfig(path=str(path), usd_per_label=1.0)) == before
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "gone" in line]
    assert line.startswith("human: human.path is gone; what was made of it is in ")


@pytest.mark.parametrize("name", ["prompts", "responses", "human", "splits"])
def test_data_that_is_gone_is_not_made_up_for_by_other_files(tmp_path: Path, name: str) -> None:
    read(tmp_path, PLAIN)
    path = tmp_path / "rows.jsonl"
    path.unlink()
    for other in (HumanConfig(path=str(path), limit=8), HumanConfig(path=f"{path}.gz")):
        with pytest.raises(SetupError, match="is neither a file"):
            made(tmp_path, other)
    (file,) = (tmp_path / "run").glob(f"{name}.json*")
    file.unlink()
    with pytest.raises(SetupError, match="is neither a file"):
        made(tmp_path, HumanConfig(path=str(path)))


def test_a_row_without_a_response_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as refused:
        read(tmp_path, [*PLAIN, {"prompt": "Q?", "chosen": "good"}])
    assert refused.value.line == 13


GIVEN = ["human.path=rows.jsonl", "judge.model=fake/shorter"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("arms=[human,human,ai_soft]", "an arm is named twice in arms"),
        ("arms=[ai_soft,ai_hard]", "arms needs human, and ai_soft or ai_hard"),
        ("arms=[human,mixed]", "arms needs human, and ai_soft or ai_hard"),
        ("arms=[human,ai_sotf]", "ai_soft"),
        ("seeds=0", "seeds"),
        ("learning_curve=[0.5,0.25]", "learning_curve is shares between 0 and 1, rising"),
        ("learning_curve=[0.5,1.0]", "learning_curve is shares between 0 and 1, rising"),
        ("learning_curve=[0.5]", "a learning curve needs two shares besides all pairs; or none"),
        ("evaluation.margin=0", "evaluation.margin"),
        ("human.usd_per_label=-1", "human.usd_per_label"),
        ("human.limit=3", "human.limit"),
    ],
)
def test_a_mistake_in_the_config_is_named(change: str, said: str) -> None:
    with pytest.raises(SetupError) as refused:
        load_as(KINDS["human"], "rlhf-vs-rlaif", [*GIVEN, change], None)
    assert said in str(refused.value)
    assert str(refused.value).startswith(f"command line: {change.partition('=')[0]}")


@pytest.fixture
def command(run_cli: Callable[..., Finished], empty_place: Path) -> Callable[..., Finished]:
    written(empty_place / "rows.jsonl", PLAIN)

    def run(*changes: str) -> Finished:
        return run_cli(
            "run",
            "rlhf-vs-rlaif",
            *GIVEN,
            "judge.constitution=concise",
            "policy.model=embedded/tiny-random",
            *changes,
        )

    return run


def test_a_start_that_differs_between_the_models_is_refused_in_one_line(
    command: Callable[..., Finished],
) -> None:
    said = command("dpo.base=embedded/smollm2-135m-instruct").refused()
    assert "reward_model.base: differs from dpo.base" in said


def test_two_sets_that_share_a_prompt_are_refused(command: Callable[..., Finished]) -> None:
    said = command("answers.harmful=everyday", "answers.refusal_prompts=2").refused()
    assert "holds the prompt 'everyday-001', as answers.harmless does" in said


def test_before_anything_is_asked_it_says_what_the_held_out_prompts_can_show(
    command: Callable[..., Finished],
) -> None:
    done = command("answers.harmless=nowhere.jsonl")
    assert "held-out" not in done.err
    done = command("--max-calls", "1")
    before, _, _ = done.err.partition("judge …")
    assert "study: with 3 held-out prompts it can show next to nothing" in before
    assert "too long" not in before


LONG = "a long story, " * 30


def long_pairs(train: int, test: int) -> list[str]:
    """Writes four pairs to train on and four to hold out, so many of them with a long answer."""
    for name, long in (("rows", train), ("test", test)):
        rows = [pair(f"In {name} {i}?", "good", LONG if i < long else "bad") for i in range(4)]
        written(Path(f"{name}.jsonl"), rows)
    return ["human.test_path=test.jsonl", "--max-calls", "1"]


def test_before_anything_is_asked_it_says_how_many_pairs_are_too_long(
    command: Callable[..., Finished],
) -> None:
    given = long_pairs(train=1, test=2)
    both = [*given, "reward_model.max_length=200", "dpo.max_length=200"]
    for _ in range(2):  # counted, and as it was counted
        before, _, _ = command(*both).err.partition("judge …")
        assert (
            "study: too long, and left out: 1 of 4 train pairs and 2 of 4 held-out pairs "
            "(reward_model.max_length and dpo.max_length: 200 tokens)"
        ) in before
    one = command(*given, "dpo.max_length=200", "--reconfigure").err
    assert "2 of 4 held-out pairs (dpo.max_length: 200 tokens)" in one
    written(Path("test.jsonl"), PLAIN)
    other = command(*given, "dpo.max_length=200", "--reconfigure").err
    assert "1 of 4 train pairs and 0 of 12 held-out pairs" in other


@pytest.mark.parametrize(
    ("train", "test", "shown"), [(4, 1, "every train pair"), (1, 4, "every held-out pair")]
)
def test_a_split_that_is_too_long_as_a_whole_is_refused_before_anything_is_asked(
    train: int, test: int, shown: str, command: Callable[..., Finished]
) -> None:
    done = command(*long_pairs(train, test), "dpo.max_length=200")
    assert f"dpo.max_length: is 200, and {shown} has more tokens than that" in done.stopped()
    assert "judge …" not in done.err


def test_a_pair_is_as_long_as_training_takes_it_to_be(tmp_path: Path) -> None:
    given = [*PLAIN[:3], pair("Long?", "good", LONG), pair("Level in length?", LONG, LONG + "x")]
    groups, _ = read(tmp_path, given)
    model = str(embedded.prepare("tiny-random", print))
    tokenizer = load_tokenizer(model)
    lengths = pair_lengths(model, groups)
    assert [len(of) for of in lengths] == [1] * 5
    for group, (tokens,) in zip(groups, lengths, strict=True):
        assert encode_groups(tokenizer, [group], tokens, as_drawn=True).dropped_responses == 0
        with pytest.raises(SetupError, match="no group is left to train on"):
            encode_groups(tokenizer, [group], tokens - 1, as_drawn=True)
