"""What a run would take: counted where it can be, and near the truth where it must be guessed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Finished, chat_request
from local_server import Script, Seen, Server, completion

from rlaif.callstore import CallStore, StoredCall, call_key
from rlaif.datasets import load_prompts
from rlaif.errors import AskingStopped, TooManyFailures
from rlaif.models import embedded
from rlaif.models.gate import Budget, Gate
from rlaif.models.prices import Price, Prices
from rlaif.plan.estimate import Plan, estimate
from rlaif.plan.figures import Figure, exactly, mean_to_come, total
from rlaif.plan.history import OWN, History, Told
from rlaif.plan.pilot import run_pilot
from rlaif.plan.table import lines
from rlaif.recipe import RunConfig, execute, load_run
from rlaif.train.counting import token_counter
from rlaif.train.generate import TransformersModel
from rlaif.train.memory import Work, needs
from rlaif.train.rl_memory import rl_needs
from rlaif.train.shapes import read_model
from rlaif.types import ChatReply, Choice

PRICE = Price(input=3.0, output=15.0)
WORDS = ("plain", "answers", "come", "first", "and", "reasons", "follow", "in", "a", "line")
IDENTITIES = ("fake/policy", "fake/shorter", "fake/longer", "served/m")
PRINCIPLES = """
id: two
principles:
  - id: short
    text: The response is short.
    comparison: Which response is shorter?
    critique: Say where it is longer than it must be.
    revision: Make it shorter.
  - id: kind
    text: The response is kind to the person who asks, whatever they ask.
    comparison: Which response is kinder?
    critique: Say where it is unkind.
    revision: Make it kinder.
{more}
"""


def written_run(folder: Path, judge: str, *, policy: str = "fake/policy", n: int = 12) -> Path:
    """A recipe over `n` prompts, with K = 4 answers each."""
    (folder / "two.yaml").write_text(PRINCIPLES.format(more=""), encoding="utf-8")
    prompts = [
        {"id": f"p{i}", "prompt": f"How do I {WORDS[i % 10]} the {WORDS[i * 7 % 10]} number {i}?"}
        for i in range(n)
    ]
    rows = "".join(json.dumps(row) + "\n" for row in prompts)
    (folder / "prompts.jsonl").write_text(rows, encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"policy: {{model: '{policy}'}}\n"
        "sample: {prompts: prompts.jsonl, k: 4, max_tokens: 48}\n"
        f"judge: {{constitution: two.yaml, {judge}}}\n"
        "reward_model: {base: embedded/tiny-random}\n"
        "dpo: {base: embedded/tiny-random}\n"
        "compare: {engine: transformers}\n",
        encoding="utf-8",
    )
    return recipe


def loaded(recipe: Path | str, *changes: str) -> RunConfig:
    return load_run(str(recipe), changes, None)[0]


def priced(*models: str) -> Prices:
    return Prices({}, dict.fromkeys(models, PRICE))


def planned(config: RunConfig, out: Path, prices: Prices | None = None, **options: Any) -> Plan:
    return estimate(config, out, prices or Prices.load(None), [], **options)


def stage(plan: Plan, name: str) -> Any:
    (found,) = [e for e in plan.stages if e.stage == name]
    return found


def stored(out: Path) -> dict[str, StoredCall]:
    """Every call in a store, by its key."""
    with CallStore(out / "calls.sqlite") as store:
        calls = [c for model in IDENTITIES for c in store.of_model(model, 1_000_000)]
        assert len(calls) == len(store)
    return {call_key(call.request): call for call in calls}


def check_against_the_stages(
    config: RunConfig, out: Path, prices: Prices, pilot: int, tolerance: float = 0.1
) -> None:
    """Plans after a pilot, then runs the stages that ask, and compares."""
    run_pilot(config, out, pilot, Gate())
    plan = planned(config, out, prices)
    before = stored(out)
    assert before, "the pilot keeps what it was answered"
    execute(config, out, ("sample", "judge"), reconfigure=False)
    taken = [call for key, call in stored(out).items() if key not in before]
    of_both = [stage(plan, "sample"), stage(plan, "judge")]
    assert total(e.calls for e in of_both) == exactly(len(taken))
    for found, truth in (
        (total(e.input_tokens for e in of_both), sum(c.reply.prompt_tokens for c in taken)),
        (total(e.output_tokens for e in of_both), sum(c.reply.completion_tokens for c in taken)),
        (total(e.usd for e in of_both), sum(PRICE.usd(c.reply) for c in taken)),
    ):
        assert found.point == pytest.approx(truth, rel=tolerance)
        assert found.low <= truth <= found.high
    done = planned(config, out, prices)
    assert stage(done, "judge").calls == exactly(0)
    assert stage(done, "judge").usd == exactly(0)
    assert stage(done, "sample").stored + stage(done, "judge").stored == len(stored(out))


def test_after_a_pilot_the_plan_of_the_smoke_recipe_is_what_it_then_takes(
    empty_place: Path,
) -> None:
    prices = priced("fake/policy", "fake/shorter")
    check_against_the_stages(loaded("smoke"), empty_place / "out", prices, pilot=6)


def test_after_a_pilot_the_plan_of_a_critique_judge_is_what_it_then_takes(
    empty_place: Path,
) -> None:
    recipe = written_run(empty_place, "model: fake/longer, mode: critique", n=24)
    prices = priced("fake/policy", "fake/longer")
    check_against_the_stages(loaded(recipe), empty_place / "out", prices, pilot=8)


def by_rule(seen: Seen) -> Script:
    """A server whose answers and token counts follow from the prompt: other texts than the fakes',
    and tokens that are not words."""
    if not seen.path.endswith("/chat/completions"):
        return Script(body={"object": "list", "data": [{"id": "m", "object": "model"}]})
    prompt = "\n".join(m["content"] for m in seen.body["messages"])
    texts = []
    for i in range(seen.body.get("n", 1)):
        drawn = int(hashlib.sha256(f"{i}{prompt}".encode()).hexdigest()[:8], 16)
        text = " ".join(WORDS[(drawn + j * j) % len(WORDS)] for j in range(8 + drawn % 25))
        text += f" {drawn}"  # equal answers would be asked about once, and fewer calls be made
        texts.append(f"{text} [[{'AB'[drawn % 2]}]]" if "double brackets" in prompt else text)
    usage = {
        "prompt_tokens": 11 + math.ceil(len(prompt) / 3.7),
        "completion_tokens": sum(math.ceil(len(text) / 4.4) for text in texts),
    }
    usage["total_tokens"] = sum(usage.values())
    return Script(body=completion(*texts, usage=usage))


def test_after_a_pilot_the_plan_of_votes_from_a_server_is_what_they_then_take(
    empty_place: Path, server: Server
) -> None:
    server.rule = by_rule
    model = f"{server.url}/v1#m"
    recipe = written_run(
        empty_place, f"model: '{model}', mode: votes, votes: 3, temperature: 1", policy=model, n=10
    )
    check_against_the_stages(loaded(recipe), empty_place / "out", priced(model), pilot=5)


def test_the_plan_asks_nothing_and_writes_nothing(empty_place: Path, server: Server) -> None:
    server.rule = by_rule
    model = f"{server.url}/v1#m"
    recipe = written_run(empty_place, f"model: '{model}'", policy=model)
    before = sorted(empty_place.rglob("*"))
    plan = planned(loaded(recipe), empty_place / "out")
    assert plan.total.calls.point > 0
    assert server.seen == []
    assert sorted(empty_place.rglob("*")) == before


@pytest.mark.parametrize(
    ("judge", "calls_a_prompt"),
    [
        # C(4, 2) = 6 pairs in 2 orders under 2 principles.
        ("model: fake/shorter", 24),
        ("model: fake/shorter, both_orders: false", 12),
        ("model: fake/shorter, principles: sample", 12),
        ("model: fake/shorter, comparisons: adjacent", 12),
        ("model: fake/shorter, comparisons: adaptive, comparisons_per_prompt: 4", 16),
        # Each of 4 responses by itself under 2 principles, however many pairs it is in.
        ("model: fake/shorter, mode: pointwise", 8),
        ("model: fake/shorter, mode: score", 8),
        # 24 verdicts, and a critique of each response under each principle.
        ("model: fake/shorter, mode: critique", 32),
        # A rationale for each verdict.
        ("model: fake/shorter, mode: reasoning", 48),
        ("model: fake/shorter, mode: structured", 24),
        # All votes in one call; Anthropic gives one answer a call.
        ("model: fake/shorter, mode: votes, temperature: 1, votes: 5", 24),
        ("model: anthropic/claude-opus-4-5, mode: votes, temperature: 1, votes: 5", 120),
        ("model: fake/shorter, panel: [{model: fake/longer}]", 48),
    ],
)
def test_the_calls_of_every_way_of_asking_are_counted(
    empty_place: Path, judge: str, calls_a_prompt: int
) -> None:
    recipe = written_run(empty_place, judge, n=5)
    plan = planned(loaded(recipe), empty_place / "out")
    assert stage(plan, "judge").calls == exactly(5 * calls_a_prompt)
    assert stage(plan, "sample").calls == exactly(5)
    # One prompt of five is held out: 2 policies' calls, 2 pairs in 2 orders under 2 principles.
    pairs = {"fake/shorter": 8}.get(judge.removeprefix("model: "))
    assert pairs is None or stage(plan, "compare").calls == exactly(2 + pairs)


def test_a_policy_that_gives_one_answer_a_call_is_asked_k_times(empty_place: Path) -> None:
    recipe = written_run(empty_place, "model: fake/shorter", policy="anthropic/claude-opus-4-5")
    plan = planned(loaded(recipe), empty_place / "out")
    assert stage(plan, "sample").calls == exactly(12 * 4)


def test_revisions_are_an_original_and_two_calls_a_round(empty_place: Path) -> None:
    recipe = written_run(empty_place, "model: fake/shorter", n=5)
    plan = planned(loaded(recipe, "revise.rounds=3"), empty_place / "out")
    assert stage(plan, "revise").calls == exactly(5 * (1 + 2 * 3))


def test_what_is_known_needs_no_interval_and_money_is_tokens_by_price(empty_place: Path) -> None:
    recipe = written_run(empty_place, "model: openai/gpt-4.1", n=5)
    found = stage(planned(loaded(recipe), empty_place / "out"), "judge")
    # A verdict that is read from log-probabilities is one token.
    assert found.output_tokens == exactly(120)
    # 2 and 8 dollars a million.
    for at in range(3):
        assert found.usd[at] == pytest.approx((found.input_tokens[at] * 2 + 120 * 8) / 1e6)
    halved = stage(planned(loaded(recipe), empty_place / "out", batch=True), "judge")
    assert halved.usd.point == pytest.approx(found.usd.point / 2)


def test_a_judge_prompt_grows_with_the_answers_that_it_shows(empty_place: Path) -> None:
    recipe = written_run(empty_place, "model: fake/shorter", n=5)
    # 0.5 x 48 and 0.5 x 480 tokens of 4.2 characters, two answers in each of 120 prompts.
    small, large = (
        stage(planned(loaded(recipe, f"sample.max_tokens={n}"), empty_place / "out"), "judge")
        for n in (48, 480)
    )
    assert large.input_tokens.point - small.input_tokens.point == pytest.approx(
        120 * 2 * 0.5 * (480 - 48), rel=0.02
    )


def test_an_unknown_price_is_said_and_the_total_is_a_lower_bound(empty_place: Path) -> None:
    recipe = written_run(empty_place, "model: openai/not-known", policy="openai/gpt-4.1")
    plan = planned(loaded(recipe), empty_place / "out")
    assert stage(plan, "judge").usd is None
    assert plan.unpriced == ("openai/not-known",)
    assert plan.total.usd is None
    assert plan.total.known_usd == stage(plan, "sample").usd
    told = lines(plan)
    assert any(line.startswith("judge ") and "unknown" in line for line in told)
    assert any(line.startswith("total ") and "at least" in line for line in told)
    assert any("no price is known for openai/not-known: the total is a lower" in t for t in told)


def test_a_price_in_the_recipe_is_taken(empty_place: Path) -> None:
    recipe = written_run(
        empty_place, "model: openai/not-known, usd_per_million_tokens: [1000000, 0]", n=5
    )
    found = stage(planned(loaded(recipe), empty_place / "out"), "judge")
    # A dollar a token.
    assert found.usd == pytest.approx(found.input_tokens)


def test_assumptions_are_told_as_assumptions_and_a_pilot_replaces_them(empty_place: Path) -> None:
    recipe = written_run(empty_place, "model: fake/shorter")
    out = empty_place / "out"
    before = planned(loaded(recipe), out)
    assert "fake/policy: 24 tokens an answer (5 to 48) where 48 are allowed" in before.assumed
    run_pilot(loaded(recipe), out, 4, Gate())
    after = planned(loaded(recipe), out)
    assert not any(note.startswith("fake/") for note in after.assumed)
    assert "fake/policy: 4 answers like these in this run" in after.measured
    spans = [stage(plan, "judge").input_tokens for plan in (before, after)]
    # (The pilot's third of the calls is paid for and no longer in it.)
    assert spans[1].high - spans[1].low < 0.5 * (spans[0].high - spans[0].low)


def test_the_pilot_is_recommended_only_where_it_has_something_to_tell(empty_place: Path) -> None:
    # Nothing tells how often the cascade's second judge is asked, before or after three pairs.
    cascade = "model: fake/shorter, cascade: {model: fake/longer, when: [margin], margin: 0.1}"
    recipe = written_run(empty_place, cascade)
    out = empty_place / "out"
    before = planned(loaded(recipe), out)
    assert lines(before)[-1].startswith("--pilot N asks")
    run_pilot(loaded(recipe), out, 1, Gate())
    after = planned(loaded(recipe), out)
    assert after.assumed
    assert not any("--pilot" in line for line in lines(after))


def test_of_runs_beside_it_the_one_whose_calls_are_most_alike_tells(tmp_path: Path) -> None:
    reply = ChatReply(
        choices=(Choice(text="A", finish_reason="stop"),), prompt_tokens=5, completion_tokens=1
    )

    def run(name: str, calls: int, words: int, n: int = 4) -> Path:
        with CallStore(tmp_path / name / "calls.sqlite") as store:
            for i in range(calls):
                store.put(chat_request(f"{i} {'word ' * words}", n=n), reply, 1.0)
        return tmp_path / name

    beside = [run("a-long", 9, 400), run("b-few", 2, 20), run("c-like", 3, 22), run("d", 9, 20, 64)]

    def told(n: int, own: Path = tmp_path / "none") -> tuple[str, int]:
        with History(own, beside) as history:
            found = history.told(("served/m",), chat_request("word " * 21, n=n))
        return found.where, len(found.calls)

    assert told(n=4) == ("c-like", 3)
    assert told(n=48) == ("d", 9)
    # What this run was answered comes first, and in it those calls that asked for as many answers.
    own = run("own", 5, 400)
    run("own", 7, 20, 64)
    assert told(n=4, own=own) == (OWN, 5)


def test_a_pilot_that_nobody_answers_says_so(
    empty_place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = written_run(empty_place, "model: fake/shorter")
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.script = [
            Script(body={"data": [{"id": "m"}]}),
            *[Script(status=400, body={"error": {"message": "no"}})] * 3,
        ]
        refusing = loaded(recipe, f"policy.model={server.url}/v1#m")
        with pytest.raises(TooManyFailures, match="none of the pilot's 3 prompts was answered"):
            run_pilot(refusing, empty_place / "r", 3, Gate())
        server.shutdown()
    assert "calls failed; most often" in capsys.readouterr().err


def test_batches_of_the_config_are_planned_at_half_the_price(empty_place: Path) -> None:
    recipe = written_run(empty_place, "model: openai/gpt-5-mini")
    live, batched = (
        stage(planned(loaded(recipe, *changes), empty_place / "out"), "judge").usd
        for changes in ((), ("judge.batch={}",))
    )
    assert live is not None
    assert batched == pytest.approx(live.times(exactly(0.5)))


def test_a_pilot_keeps_to_its_budget(empty_place: Path) -> None:
    recipe = written_run(empty_place, "model: fake/shorter")
    with pytest.raises(AskingStopped):
        run_pilot(loaded(recipe), empty_place / "r", 4, Gate(Budget(max_calls=2)))


def test_calls_of_another_run_tell_how_long_answers_are(empty_place: Path) -> None:
    recipe = written_run(empty_place, "model: fake/shorter")
    run_pilot(loaded(recipe), empty_place / "other", 4, Gate())
    plan = estimate(loaded(recipe), empty_place / "out", Prices.load(None), [empty_place / "other"])
    assert stage(plan, "sample").calls == exactly(12)
    assert "fake/policy: 4 answers like these in other" in plan.measured


def test_a_later_tier_is_a_span_until_verdicts_tell(empty_place: Path) -> None:
    recipe = written_run(empty_place, "model: fake/first, principles: tiers", n=6)
    tiers = PRINCIPLES.format(more="    tier: 2")
    (empty_place / "two.yaml").write_text(tiers, encoding="utf-8")
    out = empty_place / "out"
    found = stage(planned(loaded(recipe), out), "judge")
    assert (found.calls.low, found.calls.high) == (6 * 12, 6 * 24)
    # Whoever names the first in both orders leaves every pair a tie: the second tier is asked.
    run_pilot(loaded(recipe), out, 3, Gate())
    assert stage(planned(loaded(recipe), out), "judge").calls == exactly(3 * 24)


def test_what_verdicts_made_needless_is_not_planned_any_more(empty_place: Path) -> None:
    recipe = written_run(empty_place, "model: fake/shorter, principles: tiers", n=6)
    tiers = PRINCIPLES.format(more="    tier: 2")
    (empty_place / "two.yaml").write_text(tiers, encoding="utf-8")
    run_pilot(loaded(recipe), empty_place / "out", 6, Gate())
    found = stage(planned(loaded(recipe), empty_place / "out"), "judge")
    assert found.calls == exactly(0)
    assert 6 * 12 < found.stored < 6 * 24


def test_a_cascade_asks_its_strong_judge_between_never_and_always(empty_place: Path) -> None:
    recipe = written_run(empty_place, "model: fake/shorter, cascade: {model: fake/longer}", n=6)
    found = stage(planned(loaded(recipe), empty_place / "out"), "judge")
    assert (found.calls.low, found.calls.high) == (6 * 24, 6 * 48)


def test_figures_are_added_end_to_end_and_multiplied() -> None:
    assert total([Figure(1, 2, 3), Figure(10, 20, 30)]) == Figure(11, 22, 33)
    assert Figure(1, 2, 3).times(Figure(2, 2, 4)) == Figure(2, 4, 12)


def test_a_mean_to_come_is_students_prediction_interval() -> None:
    # Mean 4, sd 2, t(0.975; 2) = 4.3027: 4 +- 4.3027 x 2 x sqrt(1/3 + 1/6) = 4 +- 6.0849.
    low, point, high = mean_to_come([2.0, 4.0, 6.0], 6)
    assert (low, point) == (0.0, 4.0)
    assert high == pytest.approx(10.0849, abs=1e-3)


def test_the_command_prints_a_table_or_json(
    run_cli: Callable[..., Finished], empty_place: Path
) -> None:
    (empty_place / "prices.yaml").write_text(
        "models:\n  fake/shorter: {input: 1000000, output: 0}\n", encoding="utf-8"
    )
    told = run_cli("plan", "smoke", "--out", "a", "--prices", "prices.yaml", "--json")
    assert told.code == 0, told
    found = json.loads(told.out)
    judge = found["stages"]["judge"]
    assert judge["calls"] == {"low": 288.0, "point": 288.0, "high": 288.0}
    # A dollar a token.
    assert judge["usd"] == pytest.approx(judge["input_tokens"])
    assert not found["total"]["usd_is_lower_bound"]
    table = run_cli("plan", "smoke", "--out", "a", "sample.limit=6")
    assert table.code == 0, table
    head, *rows = table.out.splitlines()
    assert head.split()[:3] == ["stage", "calls", "stored"]
    (row,) = [line.split() for line in rows if line.startswith("judge ")]
    assert row[:3] == ["judge", "144", "0"]
    assert not (empty_place / "a").exists()


def test_a_pilot_says_that_it_asks_and_the_run_uses_its_answers(
    run_cli: Callable[..., Finished], empty_place: Path
) -> None:
    told = run_cli("plan", "smoke", "--out", "a", "--pilot", "2", "--json")
    assert told.code == 0, told
    assert "pilot: 2 prompts are asked about now" in told.err
    assert json.loads(told.out)["stages"]["sample"]["stored"] == 2
    assert run_cli("sample", "smoke", "--out", "a").code == 0
    cost = json.loads((empty_place / "a" / "parts" / "cost.json").read_text())["value"]
    assert cost["sample"]["calls_from_store"] == 2


def test_a_bad_price_file_ends_the_command_with_one_line(
    run_cli: Callable[..., Finished], empty_place: Path
) -> None:
    (empty_place / "prices.yaml").write_text("models:\n  openai/x: {input: no}\n")
    told = run_cli("plan", "smoke", "--prices", "prices.yaml")
    assert told.refused().startswith("prices.yaml:2: models.openai/x.")


def test_time_is_between_side_by_side_and_as_fast_as_it_was() -> None:
    # Four calls of 2 s, all at once: 2 answers a second.
    reply = ChatReply(
        choices=(Choice(text="A", finish_reason="stop"),), prompt_tokens=5, completion_tokens=1
    )
    calls = [StoredCall(chat_request(str(i)), reply, 2.0, 102.0) for i in range(4)]
    # Eight more at once take 2 s if they do not hinder each other, 4 s at two a second.
    # (And a millisecond of our own for each.)
    quick = Told(calls, calls, OWN).seconds(8, 8)
    # Four are a quarter of two windows of eight: more of the way to the rate that was seen.
    assert quick == pytest.approx((2 / 1.25, 2 * 2**0.625, 4 * 1.25), rel=0.01)
    # Two windows of calls, at no more than two a second: that is the machine's rate.
    filling = [call._replace(answered=102.0 + 2 * i) for i in range(4) for call in calls]
    filled = Told(filling, filling, OWN).seconds(8, 8)
    assert filled == pytest.approx((2 / 1.25, 4, 4 * 1.25), rel=0.01)
    # Verdicts and critiques that were in flight together each take their part of the time.
    both = Told(filling, [*filling, *filling], OWN).seconds(8, 8)
    assert both == pytest.approx((2 / 1.25, 2, 2 * 1.25), rel=0.01)
    # Of another run, which may have asked no more than these four at once, that is half as sure.
    elsewhere = Told(filling, filling, "another run").seconds(8, 8)
    assert elsewhere == pytest.approx((2 / 1.25, 2 * 2**0.75, 4 * 1.25), rel=0.01)
    # Two at a time, each still 2 s: 8 s. As quick as then is no slower than that.
    slow = Told(calls, calls, "").seconds(8, 2)
    assert slow == pytest.approx((4 / 1.25, 32**0.5, 8 * 1.25), rel=0.01)
    assert Told([], [], "").seconds(8, 8) is None


def test_pairs_that_an_adaptive_pilot_chose_are_paid_for(empty_place: Path) -> None:
    adaptive = "model: fake/shorter, comparisons: adaptive, comparisons_per_prompt: 4"
    recipe = written_run(empty_place, adaptive, n=5)
    run_pilot(loaded(recipe), empty_place / "out", 2, Gate())
    found = stage(planned(loaded(recipe), empty_place / "out"), "judge")
    assert found.calls == exactly(3 * 16)


def test_a_local_model_counts_a_prompt_by_its_own_tokenizer(one_thread: None) -> None:
    folder = embedded.prepare("tiny-random", lambda status: None)
    request = chat_request("How many tokens are in this sentence, and in its template?")
    reply = asyncio.run(TransformersModel(str(folder), "m").ask(request))
    count = token_counter(folder)
    assert count is not None
    assert count(request.messages) == reply.prompt_tokens


def test_the_plan_counts_a_served_policys_prompts_by_its_tokenizer(empty_place: Path) -> None:
    folder = embedded.prepare("tiny-random", lambda status: None)
    recipe = written_run(empty_place, "model: fake/shorter", policy="embedded/tiny-random", n=5)
    count = token_counter(folder)
    assert count is not None
    prompts = load_prompts(str(empty_place / "prompts.jsonl"), None)
    found = stage(planned(loaded(recipe), empty_place / "out"), "sample")
    assert found.input_tokens == pytest.approx(exactly(sum(count(p.messages) for p in prompts)))


def test_a_training_lasts_as_long_as_its_steps_did_in_a_run_from_the_same_weights(
    empty_place: Path,
) -> None:
    recipe = written_run(empty_place, "model: fake/shorter", n=10)
    out, other = empty_place / "out", empty_place / "other"
    assert stage(planned(loaded(recipe), out), "train-rm").seconds is None
    parts = {
        "reward_model": {"base": embedded.identity("tiny-random"), "steps": 5, "seconds": 10.0},
        "cost": {"train-rm": {"seconds": 15.0}},
    }
    (other / "parts").mkdir(parents=True)
    for name, value in parts.items():
        text = json.dumps({"of": None, "value": value})
        (other / "parts" / f"{name}.json").write_text(text, encoding="utf-8")
    plan = estimate(loaded(recipe), out, Prices.load(None), [other])
    # 8 train prompts in batches of 4: 2 steps of 3 s, and half or double.
    assert stage(plan, "train-rm").seconds == pytest.approx((3.0, 6.0, 12.0))


def test_the_memory_of_a_training_is_told_once_its_weights_are_there(empty_place: Path) -> None:
    recipe = written_run(empty_place, "model: fake/shorter", n=10)
    config = loaded(recipe, "reward_model.tokens_at_once=100")
    model = read_model(embedded.prepare("tiny-random", print))
    assert model is not None
    needed = needs(model, config.reward_model, Work(100, 100, 1024), reward=True)
    plan = planned(config, empty_place / "out")
    assert plan.memory["train-rm"] == needed.most
    (told,) = [line for line in lines(plan) if line.startswith("memory at most: ")]
    assert f"train-rm {needed.most / 1e6:.3g} MB, train-dpo " in told


def test_the_memory_of_rl_counts_all_bodies_of_the_reward_model(empty_place: Path) -> None:
    recipe = written_run(empty_place, "model: fake/shorter", n=10)
    model = read_model(embedded.prepare("tiny-random", print))
    assert model is not None
    given = ("rl.max_new_tokens=32", "reward_model.members=3", "reward_model.lora={}")
    config = loaded(recipe, *given, "rl.held_out=other")
    shutil.copytree(embedded.prepare("tiny-random", print), "other")
    longest = max(len(p.messages[0].content) for p in load_prompts(config.sample.prompts))
    assert config.rl is not None
    found = rl_needs(model, [(model, 3), (model, 1)], config.rl, math.ceil(longest / 3))
    assert planned(config, empty_place / "out").memory["train-rl"] == found.most
    # Heads of an ensemble have one body.
    heads = loaded(recipe, "rl.max_new_tokens=32", "reward_model.members=3")
    found = rl_needs(model, [(model, 1)], config.rl, math.ceil(longest / 3))
    assert planned(heads, empty_place / "out").memory["train-rl"] == found.most


def test_of_processes_that_a_launch_file_starts_no_memory_is_told(empty_place: Path) -> None:
    recipe = written_run(empty_place, "model: fake/shorter", n=10)
    embedded.prepare("tiny-random", print)
    config = loaded(recipe, "reward_model.launch=ddp")
    assert set(planned(config, empty_place / "out").memory) == {"train-dpo"}
