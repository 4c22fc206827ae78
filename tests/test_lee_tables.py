"""`rlaif run lee-tables`: how far judges agree with people, as Lee et al. (2023) table it."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Finished
from hypothesis import given
from hypothesis import strategies as st
from local_server import Script, Server, completion

from rlaif.callstore import CallStore
from rlaif.constitution import Constitution, Principle
from rlaif.constitution.model import Example
from rlaif.evaluate.certificate import Row
from rlaif.evaluate.intervals import binomial
from rlaif.evaluate.lee_tables import LabelCost, LeeRow, LeeTables, by_majority, lee_row
from rlaif.evaluate.lee_tables import longer_wins as rule
from rlaif.files import digest
from rlaif.gold import GoldPair, load_gold, part_of
from rlaif.gold.grouping import opening
from rlaif.judge.forms import PAIRED, VARIABLES
from rlaif.stages.lee_tables import examples_of, showing
from rlaif.templates import Template, fenced_blocks
from rlaif.types import Message, Prompt

Cli = Callable[..., Finished]
SHORT = "It scatters short waves of light more than long ones."
LONG = "Well, that is a question that many people ask, and there is a good deal to say about it. "
CONSTITUTION = "id: one\nprinciples:\n  - {id: concise, text: Be brief.}\n"
OUT = Path("outputs/lee-tables")


def gold(pairs: int = 40, longer: int = 10) -> None:
    """Pairs whose better response is the shorter one, but for every so many-th."""
    rows = []
    for i in range(pairs):
        texts = [f"{SHORT} ({i})", LONG * (2 + i % 3) + f"({i})"]
        better, worse = texts[::-1] if i % longer == 0 else texts
        rows.append({"prompt": f"Question {i}?", "chosen": better, "rejected": worse})
    Path("gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    Path("one.yaml").write_text(CONSTITUTION, "utf-8")


def run(run_cli: Cli, models: str, *more: str) -> Finished:
    common = (f"judge.models=[{models}]", "human.path=gold.jsonl", "judge.constitution=one.yaml")
    return run_cli("run", "lee-tables", *common, *more)


def tables() -> LeeTables:
    return LeeTables.model_validate_json((OUT / "lee.json").read_text("utf-8"))


def asked() -> list[list[dict[str, str]]]:
    """The messages of every call, as they were sent."""
    with sqlite3.connect(OUT / "calls.sqlite") as store:
        found = [json.loads(request) for (request,) in store.execute("SELECT request FROM calls")]
    store.close()
    return [request["messages"] for request in found]


def value(interval: Any) -> float:
    assert interval is not None
    found: float = interval.value
    return found


def test_a_judge_with_a_known_rule_gets_what_counting_by_hand_gives(run_cli: Cli) -> None:
    gold()
    done = run(run_cli, "fake/shorter, fake/longer")
    assert done.code == 0, done.err
    judged = part_of(load_gold("gold.jsonl").pairs, "test", None)
    right = sum((len(p.first) < len(p.second)) == (p.p_gold == 1.0) for p in judged)
    assert 0 < right < len(judged)
    found = tables()
    assert found.people.rows_used == found.prompts == len(judged)
    assert value(found.longer_wins) == pytest.approx(1 - right / len(judged))
    rows = [row for row in found.rows if row.figures is not None]
    # plain and detailed with 0 and 2 examples, a chain of thought without.
    assert len(rows) == 2 * 5
    for row in rows:
        assert row.figures is not None
        expected = right / len(judged) if row.judge == "fake/shorter" else 1 - right / len(judged)
        assert value(row.figures.agreement) == pytest.approx(expected)
        assert value(row.same_position) == 0.0
        assert row.cost is not None
        assert row.cost.calls == (4 if row.way == "chain_of_thought" else 2)
    with (OUT / "lee.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["judge"] for line in lines] == [r.judge for r in (*found.rows, *found.consistency)]
    assert float(lines[0]["alignment"]) == pytest.approx(right / len(judged))
    assert float(lines[0]["longer_wins"]) == pytest.approx(1 - right / len(judged))


def test_a_purely_positional_judge_has_all_the_bias_and_half_the_accuracy(run_cli: Cli) -> None:
    gold()
    assert run(run_cli, "fake/first").code == 0
    for row in (*tables().rows, *tables().consistency):
        if row.figures is not None:
            assert value(row.same_position) == 1.0
            assert value(row.figures.agreement) == 0.5
            assert value(row.figures.first_position_rate) == 1.0
    page = (OUT / "lee.md").read_text("utf-8")
    assert "; first 100 %" in page
    assert (OUT / "lee.html").read_text("utf-8").count("<script") == 0


def test_no_example_without_shots_and_one_of_each_label_with_two(run_cli: Cli) -> None:
    gold()
    assert run(run_cli, "fake/shorter", "styles=[plain, detailed]", "self_consistency=0").code == 0
    shown: dict[int, int] = {}
    examples: set[tuple[str, ...]] = set()
    for messages in asked():
        said = [m["content"] for m in messages if m["role"] == "assistant"]
        shown[len(said)] = shown.get(len(said), 0) + 1
        if said:
            assert said == ["A", "B"]
            *before, last = [m["content"] for m in messages if m["role"] == "user"]
            examples.add(tuple(fenced_blocks(text)[0].text for text in before))
            assert fenced_blocks(last)[0].text not in examples
    pairs = tables().people.rows_used
    assert shown == {0: 4 * pairs, 2: 4 * pairs}
    # The same two before every pair, and the better response of the first is A, of the second B.
    assert len(examples) == 1


def test_a_rerun_asks_nothing_and_gives_the_same_bytes(run_cli: Cli) -> None:
    gold()
    names = ("lee.json", "lee.csv", "lee.md", "lee.html")
    price = "{model: fake/shorter, usd_per_million_tokens: [2, 10]}"
    small = ("styles=[plain, chain_of_thought]", "shots=[0]", "self_consistency=2")
    assert run(run_cli, f"{price}, fake/noisy", *small).code == 0
    first = {name: (OUT / name).read_bytes() for name in names}
    made = len(asked())
    assert run(run_cli, f"{price}, fake/noisy", *small).code == 0
    assert {name: (OUT / name).read_bytes() for name in names} == first
    assert len(asked()) == made
    cost = json.loads((OUT / "parts" / "cost.json").read_text())["value"]["lee-tables"]
    assert cost["calls_made"] == 0
    row = tables().rows[0].cost
    assert row is not None
    assert row.usd == pytest.approx((row.prompt_tokens * 2 + row.completion_tokens * 10) / 1e6)
    # The folder is that of one config, and the config alone runs again.
    assert "another config" in run(run_cli, "fake/first").refused()
    assert run_cli("run", "--out", str(OUT)).code == 0


def test_a_budget_that_is_spent_stops_and_the_rest_goes_on(run_cli: Cli) -> None:
    gold()
    stopped = run(run_cli, "fake/shorter", "--max-calls", "10")
    assert stopped.code == 4
    assert not (OUT / "lee.json").exists()
    before = len(asked())
    assert before == 10
    assert run(run_cli, "fake/shorter").code == 0
    assert (OUT / "lee.json").exists()


def test_pairs_without_a_label_are_told_of_beside_the_alignment(run_cli: Cli) -> None:
    gold(pairs=12)
    assert run(run_cli, "fake/refuse", "styles=[plain]", "self_consistency=0").code == 0
    row = next(r for r in (OUT / "lee.md").read_text("utf-8").splitlines() if "0-shot |" in r)
    assert "50 % [" in row
    assert "]; 100 % no label |" in row


def test_a_chain_of_thought_with_examples_is_a_row_that_says_why_it_is_not_asked(
    run_cli: Cli,
) -> None:
    gold()
    done = run(run_cli, "fake/shorter")
    (row,) = [r for r in tables().rows if r.failed]
    assert (row.way, row.shots) == ("chain_of_thought", 2)
    assert "rationale" in row.failed
    assert "not asked: chain of thought, 2-shot: fake/shorter: an example" in done.out
    assert "| chain of thought, 2-shot | not asked |" in (OUT / "lee.md").read_text("utf-8")


def test_nothing_is_held_against_a_first_way_that_was_not_asked(run_cli: Cli) -> None:
    gold()
    ways = ("styles=[chain_of_thought, plain]", "shots=[2, 0]", "self_consistency=0")
    assert run(run_cli, "fake/shorter", *ways).code == 0
    assert [bool(row.failed) for row in tables().rows] == [True, False, False, False]
    assert [row.difference for row in tables().rows] == [None] * 4
    page = (OUT / "lee.md").read_text("utf-8")
    table = page.split("Difference from chain of thought, 2-shot")[1].split("## ")[0]
    assert "| plain, 2-shot |  |" in table
    assert table.rstrip().endswith("No difference is given of fake/shorter, which has no such row.")


def test_a_judge_that_cannot_be_asked_in_a_style_is_a_row_and_the_others_are_asked(
    run_cli: Cli, server: Server
) -> None:
    gold(pairs=12)
    no_logprobs = completion("A")
    models = {"object": "list", "data": [{"id": "m", "object": "model"}]}

    def answer(seen: Any) -> Script:
        if seen.path.endswith("/models"):
            return Script(body=models)
        return Script(404, body={}) if "tokenize" in seen.path else Script(body=no_logprobs)

    server.rule = answer
    more = ("styles=[plain]", "shots=[0]", "self_consistency=0")
    done = run(run_cli, f"'{server.url}/v1#m', fake/shorter", *more)
    assert done.code == 0, done.err
    first, second = tables().rows
    assert "without log-probabilities" in first.failed
    assert second.figures is not None


# Self-consistency.


def gold_row(i: int, p: tuple[float, float], better_first: bool = True) -> Row:
    mean = sum(p) / 2
    outcome: Any = "tie" if mean == 0.5 else "A" if mean > 0.5 else "B"
    return Row(str(i), str(i), float(better_first), (), mean, outcome, "", p[0], p[1], 10 + i, 12)


def test_the_majority_counts_winners_and_the_average_counts_votes() -> None:
    # 4 of 5 votes for the first and 1 of 5: level. 3 of 5 and 1 of 5: the average names the second,
    # and each order's majority another winner.
    counted = [by_majority(gold_row(0, p), 0.01) for p in ((0.8, 0.2), (0.6, 0.2), (0.6, 0.8))]
    assert [r.outcome for r in counted] == ["tie", "tie", "A"]
    assert [(r.p_forward, r.p_swapped) for r in counted] == [(1, 0), (1, 0), (1, 1)]
    unscored = gold_row(0, (0.5, 0.5))._replace(p_first=None, outcome="unscored", p_forward=None)
    assert by_majority(unscored, 0.01) == unscored


def test_self_consistency_improves_as_arithmetic_says() -> None:
    cost = LabelCost(calls=2, prompt_tokens=1, completion_tokens=1, usd=None)
    start = LeeRow(judge="j", way="average", shots=0, failed="not asked")
    # The single verdict gets 1 of 4 and two ties: 2 of 4. The average gets 3 of 4.
    single = [gold_row(i, p) for i, p in enumerate([(1, 1), (1, 0), (0, 1), (0, 0)])]
    average = [gold_row(i, p) for i, p in enumerate([(0.8, 1), (0.8, 0.6), (0.4, 1), (0.2, 0)])]
    row = lee_row(start, average, single, cost, None, 0)
    assert row.figures is not None
    assert value(row.figures.agreement) == pytest.approx(0.75)
    assert value(row.difference) == pytest.approx(0.25)
    # The third pair: its orders name different winners, as 2 of 4 do of the single verdict's.
    assert value(row.same_position) == pytest.approx(1 / 4)
    assert value(lee_row(start, single, (), cost, None, 0).same_position) == pytest.approx(2 / 4)
    assert lee_row(start, single, (), cost, None, 0).difference is None
    same = lee_row(start, single, single, cost, None, 0).difference
    assert same is not None
    assert (same.low, same.value, same.high) == (-same.high, 0.0, binomial(0, 4).high)


def test_votes_that_never_waver_gain_nothing_and_those_that_do_are_counted(run_cli: Cli) -> None:
    gold()
    assert run(run_cli, "fake/first, fake/noisy", "self_consistency=7").code == 0
    of = {(r.judge, r.way): r for r in tables().consistency}
    assert len(of) == 6
    for way in ("average", "majority"):
        assert value(of["fake/first", way].difference) == 0.0
        assert of["fake/first", way].samples == 7
    assert of["fake/noisy", "single"].difference is None
    for way in ("average", "majority"):
        row, single = of["fake/noisy", way], of["fake/noisy", "single"]
        assert row.figures is not None
        assert single.figures is not None
        gained = value(row.figures.agreement) - value(single.figures.agreement)
        assert value(row.difference) == pytest.approx(gained)
    sampled = {r["sampling"]["temperature"]: r["sampling"]["n"] for r in requests_of_votes()}
    assert sampled == {0.0: 1, 1.0: 7}


def requests_of_votes() -> list[dict[str, Any]]:
    with sqlite3.connect(OUT / "calls.sqlite") as store:
        found = [json.loads(request) for (request,) in store.execute("SELECT request FROM calls")]
    store.close()
    return [r for r in found if "double brackets" in r["messages"][-1]["content"]]


# Examples.


def pair(i: int, turns: list[str], length: int, p: float) -> GoldPair:
    roles = ("user", "assistant")
    messages = tuple(Message(role=roles[n % 2], content=t) for n, t in enumerate(turns))  # type: ignore[arg-type]
    prompt = Prompt(id="g-" + digest([m.model_dump() for m in messages])[:12], messages=messages)
    return GoldPair(f"row-{i}", prompt, "x" * length, "y" * (length + 1), p, ())


PAIRS = st.lists(
    st.tuples(
        st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=3).filter(
            lambda turns: len(turns) % 2 == 1
        ),
        st.integers(1, 9),
        st.sampled_from([0.0, 1.0]),
    ),
    max_size=40,
).map(lambda drawn: [pair(i, *of) for i, of in enumerate(drawn)])


@given(pairs=PAIRS, k=st.integers(0, 4), seed=st.integers(0, 3))
def test_no_conversation_of_an_example_is_judged(pairs: list[GoldPair], k: int, seed: int) -> None:
    examples = examples_of(pairs, k, seed)
    assert len(examples) <= k
    judged = part_of(pairs, "test", None)
    assert not {opening(e.prompt) for e in examples} & {opening(p.prompt) for p in judged}
    assert len({e.prompt.id for e in examples}) == len(examples)


def test_another_seed_draws_other_examples_and_all_of_them_are_short() -> None:
    pairs = [pair(i, [f"Question {i}?"], 10 * (i + 1), 1.0) for i in range(60)]
    drawn = {tuple(p.id for p in examples_of(pairs, 2, seed)) for seed in range(8)}
    assert len(drawn) > 4
    dev = sorted(len(p.first) for p in part_of(pairs, "dev", None))
    for seed in range(8):
        for p in examples_of(pairs, 2, seed):
            assert len(p.first) <= dev[len(dev) // 2]
    assert examples_of(pairs, 1, 5) == examples_of(pairs, 2, 5)[:1]


def test_the_better_response_of_an_example_is_the_one_that_people_chose() -> None:
    constitution = Constitution(id="c", principles=(Principle(id="a", text="Be brief."),))
    shown = showing(constitution, [pair(0, ["q"], 3, 1.0), pair(1, ["r"], 3, 0.0)])
    first, second = shown.principles[0].examples
    assert (first.chosen, first.rejected) == ("xxx", "yyyy")
    assert (second.chosen, second.rejected) == ("yyyy", "xxx")


EXAMPLES = tuple(
    Example(prompt=f"Q{i}?", chosen=f"good {i}", rejected=f"bad {i}", rationale=why)
    for i, why in enumerate(["First why.", "", "Third why."])
)
SHOWN: dict[str, Any] = {
    "conversation": (Message(role="user", content="Is it so?"),),
    "principle": Principle(id="a", text="Be brief.", examples=EXAMPLES),
    "labels": ("A", "B"),
    "response_a": "yes",
    "response_b": "no",
}


def test_the_plain_prompt_shows_examples_that_are_a_and_b_in_turn() -> None:
    messages = Template("compare_plain", VARIABLES["pairwise"]).render(SHOWN)
    assert [m.content for m in messages if m.role == "assistant"] == ["A", "B", "A"]
    texts = [[b.text for b in fenced_blocks(m.content)] for m in messages if m.role == "user"]
    assert texts == [
        ["Q0?", "good 0", "bad 0"],
        ["Q1?", "bad 1", "good 1"],
        ["Q2?", "good 2", "bad 2"],
        ["Is it so?", "yes", "no"],
    ]


def test_a_reasoning_judge_is_shown_the_examples_that_have_a_rationale() -> None:
    messages = Template("reason", PAIRED).render(SHOWN)
    said = [m.content for m in messages if m.role == "assistant"]
    assert said == ["First why.", "A", "Third why.", "B"]
    variables = {**SHOWN, "rationale": "Now why."}
    messages = Template("compare_reasoned", VARIABLES["reasoning"]).render(variables)
    assert [m.content for m in messages if m.role == "assistant"] == [*said, "Now why."]


def test_a_constitution_whose_examples_have_no_rationale_keeps_its_hash() -> None:
    plain = {"prompt": "Q?", "chosen": "a", "rejected": "b"}
    assert Example.model_validate(plain).model_dump() == {**plain, "critique": ""}
    assert "rationale" in EXAMPLES[0].model_dump()


def test_longer_wins_counts_every_judged_pair() -> None:
    pairs = [pair(i, [f"q{i}"], 5, p) for i, p in enumerate([0.0, 0.0, 0.0, 1.0])]
    assert value(rule(pairs, 0)) == 0.75


# Bad input.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("judge.models=[]", "judge.models: name at least one judge"),
        ("judge.models=[fake/first, fake/first]", "judge.models: a judge is named twice"),
        ("judge.models=[fake/frist]", "judge.models[0].model: no fake model 'frist'"),
        ("styles=[plain, fancy]", "styles[1]: found 'fancy'"),
        ("styles=[]", "styles: found list"),
        ("shots=[0, 0]", "shots names one twice"),
        ("shots=[-1]", "shots[0]: found -1"),
        ("self_consistency=1", "self_consistency of 1"),
        ("human.path=nowhere.jsonl", "human.path: 'nowhere.jsonl' is neither a file"),
        ("human.limit=0", "human.limit: found 0"),
        ("shots=[0, 30]", "shots: asks for 30 examples"),
        ("judge.constitution=nope", "nope"),
        ("judge.model=fake/first", "judge.models"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_asked(
    change: str, said: str, run_cli: Cli
) -> None:
    gold()
    assert said in run(run_cli, "fake/first", change).refused()
    assert not (OUT / "calls.sqlite").exists()


def test_too_few_pairs_for_the_examples_are_named(run_cli: Cli) -> None:
    gold(pairs=2)
    line = run(run_cli, "fake/first", "shots=[3]").refused()
    assert "asks for 3 examples" in line or "none lies in the half that is judged" in line


def test_no_other_command_takes_the_recipe(run_cli: Cli) -> None:
    line = run_cli("sample", "lee-tables").refused()
    assert (
        "makes tables of labeler alignment, which `rlaif run` and `rlaif plan` alone take" in line
    )


def test_each_way_asks_about_each_pair_once_in_each_order(run_cli: Cli) -> None:
    gold(pairs=12)
    assert run(run_cli, "fake/shorter", "shots=[0]", "human.limit=4").code == 0
    with CallStore(OUT / "calls.sqlite") as store:
        # 4 pairs in 2 orders: plain, detailed, a rationale and its verdict, one vote, eight votes.
        assert len(store) == 4 * 2 * 6
