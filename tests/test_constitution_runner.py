"""A constitution's own tests, put to scripted judges that really read their prompts."""

from __future__ import annotations

import sqlite3
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_server import Script, Server, completion

from rlaif.constitution import Case, Place
from rlaif.errors import SetupError
from rlaif.evaluate.test_table import (
    CaseResult,
    CaseRun,
    Contradiction,
    contradictions,
    junit_xml,
    table,
)
from rlaif.judge.comply import asked_alone
from rlaif.judge.config import JudgeConfig
from rlaif.stages import constitution_test
from rlaif.stages.constitution_test import run_constitution_test

Run = Callable[..., CaseRun]
SHORT = "Pack a map."
LONG = (
    "Pack a map, a coat, a torch, some bread, a knife, a rope, and whatever else may come in handy."
)
OWN = f"""\
id: own
principles:
  - id: brief
    text: Say it in few words.
    tests:
      - {{name: short wins, prompt: What now, chosen: {SHORT}, rejected: "{LONG}"}}
      - {{name: long wins, prompt: What now, chosen: "{LONG}", rejected: {SHORT}, tags: [x]}}
      - {{name: short is brief, prompt: What now, response: {SHORT}, complies: true}}
      - {{name: short is not, prompt: What now, response: {SHORT}, complies: false, tags: [x]}}
  - id: coded
    text: Write plain code.
    applies_when: "'code' in tags"
    comparison: "Which {{{{ metadata.language }}}} code is plainer?"
    tests:
      - name: plain code
        prompt: Add two numbers.
        tags: [code]
        metadata: {{language: Python}}
        chosen: sum(a, b)
        rejected: "def add_two_numbers_together(first, second): return first + second"
tests:
  - {{name: all of it, principle: "*", prompt: And now, chosen: {SHORT}, rejected: "{LONG}"}}
"""


@pytest.fixture
def tested(tmp_path: Path) -> Run:
    """Runs the tests of a file on a judge, in one folder."""

    def run(judge: str, text: str = OWN, **options: object) -> CaseRun:
        path = tmp_path / "own.yaml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        asking = {k: options.pop(k) for k in list(options) if k in JudgeConfig.model_fields}
        config = JudgeConfig.model_validate({"constitution": str(path), "model": judge, **asking})
        return run_constitution_test(str(path), config, tmp_path / "out", **options)  # type: ignore[arg-type]

    return run


def outcomes(run: CaseRun) -> dict[str, str]:
    return {result.title: result.outcome for result in run.results}


@pytest.mark.parametrize("mode", ["pairwise", "structured", "critique", "pointwise"])
def test_a_judge_passes_the_tests_that_it_agrees_with_and_fails_the_others(
    mode: str, tested: Run
) -> None:
    run = tested("fake/shorter", mode=mode)
    assert outcomes(run) == {
        "short wins": "pass",
        "long wins": "fail",
        "short is brief": "pass",
        "short is not": "fail",
        "plain code": "pass",
        "all of it": "pass",
    }
    assert (run.failed, run.count("fail"), run.count("unscored")) == (2, 2, 0)
    reasons = {result.title: result.reason for result in run.results if result.reason}
    assert reasons == {
        "long wins": "the rejected response wins",
        "short is not": "the judge finds that it follows the principle",
    }
    assert [result.place.line for result in run.results] == [6, 7, 8, 9, 15, 22]
    assert {r.kind for r in run.results if "is" in r.title.split()} == {"compliance"}


def test_the_other_judge_passes_the_other_tests(tested: Run) -> None:
    run = tested("fake/longer")
    assert outcomes(run)["long wins"] == "pass"
    assert outcomes(run)["short is not"] == "pass"
    assert run.count("pass") == 2


def test_the_probability_is_that_of_what_is_right(tested: Run) -> None:
    wins, loses, yes, no, *_ = tested("fake/shorter").results
    assert None not in (wins.p, loses.p, yes.p, no.p)
    assert wins.p == pytest.approx(1 - loses.p)  # type: ignore[operator]
    assert yes.p == pytest.approx(1 - no.p)  # type: ignore[operator]
    # 12 against 96 characters: log-odds of 10 log(97 / 12).
    assert wins.p == pytest.approx(1 / (1 + (12 / (1 + len(LONG))) ** 10))
    # 12 against 100, the medium.
    assert yes.p == pytest.approx(1 / (1 + (12 / 100) ** 10))


@pytest.mark.parametrize("options", [{}, {"both_orders": False}])
def test_a_judge_that_looks_at_the_position_alone_passes_no_pair_whatever_the_config_says(
    options: dict[str, bool], tested: Run
) -> None:
    run = tested("fake/first", **options)
    pairs = [result for result in run.results if result.kind == "pair"]
    assert {(r.outcome, r.reason) for r in pairs} == {
        ("fail", "a tie: what is shown first wins in both orders")
    }
    assert all(r.p == pytest.approx(0.5) for r in pairs)
    # It says yes to whatever it sees.
    assert outcomes(run)["short is brief"] == "pass"
    assert outcomes(run)["short is not"] == "fail"


def test_a_judge_that_leans_neither_way_fails_and_it_is_said_why(tested: Run) -> None:
    medium = "y" * 99  # fake/shorter's own middle, 100 with the one that its logarithm adds
    run = tested(
        "fake/shorter",
        f"""\
        - text: Be kind.
          tests:
            - {{prompt: Hi, chosen: abcde, rejected: fghij}}
            - {{prompt: Hi, response: {medium}, complies: true}}
        """,
    )
    assert [(r.outcome, r.reason) for r in run.results] == [
        ("fail", "a tie: neither response is preferred"),
        ("fail", "a tie: the judge leans neither way"),
    ]


def test_a_judge_that_refuses_scores_nothing(tested: Run) -> None:
    run = tested("fake/refuse")
    assert set(outcomes(run).values()) == {"unscored"}
    assert {(r.p, r.reason) for r in run.results} == {(None, "label_mass_below_floor")}
    assert run.failed == len(run.results) == 6


def test_without_log_probabilities_the_answers_are_read_as_text(tested: Run) -> None:
    run = tested("fake/shorter?logprobs=no")
    assert outcomes(run) == outcomes(tested("fake/shorter"))
    assert {r.p for r in run.results} == {0.0, 1.0}
    refused = tested("fake/refuse?logprobs=no")
    assert {r.reason for r in refused.results} == {"unreadable"}


def test_calls_that_fail_are_unscored_with_their_reason(tested: Run) -> None:
    tests = "".join(f"    - {{prompt: Hi, response: r{i}, complies: true}}\n" for i in range(20))
    run = tested("fake/faulty?rate=1&stuck=yes", f"- text: Be kind.\n  tests:\n{tests}", attempts=1)
    assert run.count("unscored") == 20
    assert {"transient", "rejected", "label_mass_below_floor"} < {r.reason for r in run.results}


def test_a_template_that_shows_a_wording_gets_it_rendered(tested: Run, tmp_path: Path) -> None:
    own = tmp_path / "own.j2"
    own.write_text(
        '{% message "user" %}\n{{ principle.comparison }}\nResponse:\n{{ response | fence }}\n'
        "Answer with one word and nothing else: yes or no.\n{% endmessage %}\n"
    )
    text = SINGLE + "  comparison: \"Is {{ metadata.language | default('any') }} text kinder?\"\n"
    tested("fake/shorter", text, mode="pointwise", template=str(own))
    with sqlite3.connect(tmp_path / "out" / "calls.sqlite") as db:
        (request,) = [row[0] for row in db.execute("SELECT request FROM calls")]
    db.close()
    assert "Is any text kinder?" in request


def test_a_second_run_asks_nothing_and_takes_no_time(tested: Run) -> None:
    first, again = (tested("fake/shorter?delay=0.01") for _ in range(2))
    # Two pairs of `brief` show the same texts, for tags are not shown, and so do its two single
    # responses: 2 calls and 1. `coded` takes 2, and the whole 2: only `brief` applies there.
    assert (first.calls_made, first.calls_from_store) == (7, 0)
    assert (again.calls_made, again.calls_from_store) == (0, 7)
    assert outcomes(first) == outcomes(again)
    assert [r.p for r in first.results] == [r.p for r in again.results]
    assert {r.seconds for r in again.results} == {0.0}
    assert again.seconds == 0.0
    assert first.seconds == pytest.approx(sum(r.seconds for r in first.results))
    # Two rounds of calls, all pairs together and all single responses together.
    assert first.seconds >= 0.02


def test_a_principle_is_asked_about_its_own_tests_alone(tested: Run) -> None:
    run = tested("fake/shorter", only=["coded"])
    assert outcomes(run) == {"plain code": "pass"}
    assert run.calls_made == 2
    whole = tested("fake/shorter", only=["*"])
    # `coded` does not apply to the prompt of the test.
    assert (outcomes(whole), whole.calls_made) == ({"all of it": "pass"}, 2)


def test_a_panel_is_averaged_and_a_cascade_has_the_last_word(tested: Run) -> None:
    text = f"""\
    - text: Say it in few words.
      tests:
        - {{prompt: What now, chosen: {SHORT}, rejected: "{LONG}"}}
        - {{prompt: What now, response: {SHORT}, complies: true}}
    """
    longer = [{"model": "fake/longer"}]
    split = tested("fake/shorter", text, panel=longer)
    assert [r.reason.partition(":")[0] for r in split.results] == ["a tie", "a tie"]
    decided = tested("fake/shorter", text, panel=longer, cascade={"model": "fake/shorter?seed=1"})
    assert (decided.count("pass"), decided.calls_made) == (2, 3)
    assert decided.judge == "fake/shorter + fake/longer + fake/shorter?seed=1"
    assert tested("fake/longer", text, cascade={"model": "fake/shorter?seed=2"}).calls_made == 0
    assert tested("fake/refuse", text, cascade={"model": "fake/shorter"}).count("pass") == 2
    refusing = [{"model": "fake/refuse"}]
    assert tested("fake/shorter", text, panel=refusing).count("pass") == 2
    lost = tested("fake/shorter", text, panel=refusing, min_voting_weight=0.6)
    assert lost.count("unscored") == 2


def test_asked_about_one_response_a_judge_leaves_its_way_with_pairs_behind() -> None:
    votes = JudgeConfig(
        constitution="hhh", model="m", mode="votes", temperature=1.0, labels=("X", "Y"), clamp=0.1
    )
    alone = asked_alone(votes)
    assert (alone.mode, alone.offered, alone.temperature) == ("pointwise", ("yes", "no"), 0.0)
    assert (alone.logprobs, alone.clamp, alone.model) == (False, 0.1, "m")
    own = JudgeConfig(constitution="hhh", model="m", mode="pointwise", template="pointwise_plain")
    assert asked_alone(own) is own


def test_a_server_without_log_probabilities_is_found_before_a_response_is_asked_about(
    server: Server, tested: Run
) -> None:
    models = Script(body={"object": "list", "data": [{"id": "m", "object": "model"}]})
    server.script = [models, Script(body=completion("yes"))]
    with pytest.raises(SetupError, match="answers without log-probabilities") as caught:
        tested(f"{server.url}/v1#m", SINGLE)
    assert caught.value.field == "judge.logprobs"
    assert len(server.seen) == 2
    server.script = [models, Script(body=completion("I would say: yes."))]
    assert tested(f"{server.url}/v1#m", SINGLE, logprobs=False).failed == 1
    server.script = [models, Script(body=completion("yes"))]
    read = tested(f"{server.url}/v1#m", SINGLE, logprobs=False, text_verdict_tokens=5)
    assert [(r.outcome, r.p) for r in read.results] == [("pass", 1.0)]


WORDED = """\
- text: Be kind.
  comparison: "Which {{ metadata.language }} text is kinder?"
  tests:
    - {prompt: Hi, metadata: {language: German}, chosen: a, rejected: b}
- text: Be brief.
  tests:
    - {prompt: Hi, chosen: a, rejected: b}
"""
SINGLE = "- text: Be kind.\n  tests:\n    - {prompt: Hi, response: a, complies: true}\n"


@pytest.mark.parametrize(
    ("text", "options", "line", "said"),
    [
        (OWN.replace("complies: false, tags: [x]", "complies: false"), {}, 9, "contradicts the"),
        (OWN.replace('principle: "*"', "principle: brif"), {}, 22, "did you mean 'brief'"),
        (OWN.replace("{language: Python}", "{}"), {}, 13, "has no attribute 'language'"),
        (OWN, {"only": ["breif"]}, None, "there is no principle 'breif' (did you mean 'brief'?)"),
        ("- Be kind.\n", {}, None, "has no test (add"),
        (OWN, {"only": ["coded", "brief"], "mode": "score"}, None, ""),
        (SINGLE, {"find_contradictions": True}, None, "has no test with two responses"),
        (OWN, {"template": "nowhere"}, None, "'nowhere' is neither a file"),
        (OWN, {"panel": [{"model": "fake/shortest"}]}, None, "did you mean fake/shorter?"),
        (OWN, {"panel": [{"model": "openai/m"}]}, None, "OPENAI_API_KEY"),
        (WORDED, {"find_contradictions": True}, 2, "has no attribute 'language'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_asked(
    text: str,
    options: dict[str, object],
    line: int | None,
    said: str,
    tested: Run,
    empty_place: Path,
) -> None:
    if not said:  # the scale is no way to ask yes or no, and pointwise takes its place
        assert tested("fake/shorter", text, **options).count("pass") == 3
        return
    with pytest.raises(SetupError) as caught:
        tested("fake/shorter", text, **options)
    assert said in str(caught.value)
    assert caught.value.line == line
    assert not (empty_place / "out").exists()


def test_warnings_of_lint_stop_nothing(tested: Run) -> None:
    text = OWN + f'  - {{principle: "*", prompt: And now, chosen: {SHORT}, rejected: "{LONG}"}}\n'
    assert tested("fake/shorter", text).count("pass") == 5


def test_the_right_response_is_shown_first_about_as_often_as_second() -> None:
    tests = [
        Case(principle="a", prompt=f"Number {i}?", chosen="right", rejected="wrong")  # type: ignore[arg-type]
        for i in range(200)
    ]
    first = sum(constitution_test._pair(case).first.text == "right" for case in tests)
    # Five standard deviations of a fair coin: 5 * sqrt(200) / 2 = 35.
    assert 65 < first < 135


# What contradicts


def cases(n: int) -> list[Case]:
    made = {"principle": "a", "prompt": "Hi", "chosen": "x", "rejected": "y"}
    return [Case.model_validate({**made, "name": f"t{i}"}) for i in range(n)]


def test_principles_contradict_each_other_on_half_of_what_both_decide_and_more_than_one() -> None:
    votes = [
        {"a": 0.9, "b": 0.1, "c": 0.55, "d": 0.9},
        {"a": 0.9, "b": 0.2, "c": 0.1, "d": 0.9},
        {"a": 0.9, "b": 0.9, "c": 0.9, "d": 0.9},
        {"a": 0.2, "b": 0.3, "d": 0.9},
    ]
    found = contradictions(cases(4), votes)
    # a, b: t0, t1 of four. a, c decide t1, t2 and disagree on t1 alone. b, d: t0, t1, t3 of four.
    # a, d: t3 of four; b, c: none of two; c, d: t1 of two.
    assert found == [
        Contradiction("b", "d", 3, 4, ("t0", "t1", "t3")),
        Contradiction("a", "b", 2, 4, ("t0", "t1")),
    ]
    assert str(found[0]) == (
        "'b' and 'd' name different winners on 3 of the 4 tests that both decide, such as 't0'"
    )
    more = contradictions(cases(5), [*votes, {"a": 0.9, "b": 0.9}])
    assert [(c.first, c.second, c.both_decided) for c in more] == [("b", "d", 4)]
    single = contradictions(cases(1), votes[:1])
    assert [(c.first, c.second) for c in single] == [("a", "b"), ("b", "d")]
    assert contradictions(cases(4), votes, margin=0.45) == []


vote = st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1), max_size=4)


@given(votes=st.lists(vote, max_size=5), turned=st.sets(st.integers(0, 4)))
def test_who_contradicts_whom_does_not_hang_on_which_response_is_called_chosen(
    votes: list[dict[str, float]], turned: set[int]
) -> None:
    other = [{i: 1 - p for i, p in of.items()} if n in turned else of for n, of in enumerate(votes)]
    # 0.6 and 0.4 are as far from the middle, but not in binary.
    assert contradictions(cases(len(votes)), votes, 0.1001) == contradictions(
        cases(len(votes)), other, 0.1001
    )


def test_two_principles_with_opposite_tests_contradict_each_other_on_a_judge_that_knows_them(
    tested: Run, tmp_path: Path
) -> None:
    text = f"""\
    - id: brief
      text: Say it in few words.
      tests:
        - &one {{prompt: What now, chosen: {SHORT}, rejected: "{LONG}"}}
        - {{prompt: And now, chosen: {SHORT}, rejected: "{LONG}"}}
    - id: thorough
      text: Leave nothing out.
      tests:
        - {{prompt: What now, chosen: "{LONG}", rejected: {SHORT}}}
        - {{prompt: And now, chosen: "{LONG}", rejected: {SHORT}}}
    - id: plain
      text: Use no metaphors.
      tests:
        - *one
    """
    knows = f"fake/knows?constitution={tmp_path / 'own.yaml'}"
    run = tested(knows, text, find_contradictions=True, principles="sample")
    assert run.count("pass") == 5
    assert [(c.first, c.second, c.disagreed, c.both_decided) for c in run.contradictions] == [
        ("brief", "thorough", 2, 2),
        ("thorough", "plain", 1, 1),
    ]
    agreed = tested("fake/shorter", text, find_contradictions=True)
    assert agreed.contradictions == ()
    # 2 distinct pairs under 3 principles in 2 orders.
    assert agreed.calls_made == 12


# How it is told

RESULTS = (
    CaseResult("quick & <dirty>", "brief", "pair", "pass", 0.98, "", 0.5, Place(Path("o.yaml"), 4)),
    CaseResult("x" * 60, "brief", "pair", "fail", 0.02, "a < b", 0.25, Place(Path("o.yaml"), 5)),
    CaseResult('"odd"\x1b[2J', "*", "pair", "unscored", None, "empty", 0, Place(Path("o.yaml"), 9)),
)
TOLD = CaseRun("own", "fake/shorter", RESULTS, (), 0, 0, 4, 2, 0.75)


def test_the_table_has_a_line_for_each_test_then_the_places_then_the_totals() -> None:
    head, quick, long, odd, missed, unscored, totals = table(TOLD).splitlines()
    assert head.split() == ["principle", "test", "p", "time"]
    assert quick.split() == ["pass", "brief", "quick", "&", "<dirty>", "0.98", "0.5", "s"]
    assert "x" * 47 + "…" in long
    assert odd.startswith("unscored *")
    assert {len(line) for line in (head, quick, long, odd)} == {len(head)}
    assert "\x1b" not in table(TOLD)
    assert missed == f"o.yaml:5: fail: {'x' * 60}: a < b"
    assert unscored == 'o.yaml:9: unscored: "odd" [2J: empty'
    assert totals == (
        "3 tests of own on fake/shorter: 1 pass, 1 fail, 1 unscored; 4 calls, 2 from the store, "
        "0.8 s"
    )
    assert TOLD.failed == 2


def test_junit_has_a_suite_for_each_principle_and_counts_that_add_up() -> None:
    root = ET.fromstring(junit_xml(TOLD))
    assert root.tag == "testsuites"
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("3", "1", "1")
    assert root.get("time") == "0.750"
    assert [(s.get("name"), s.get("tests"), s.get("failures"), s.get("errors")) for s in root] == [
        ("brief", "2", "1", "0"),
        ("*", "1", "0", "1"),
    ]
    passed, failed, unscored = root.iter("testcase")
    assert (passed.get("name"), passed.get("classname")) == ("quick & <dirty>", "own.brief")
    assert (passed.get("time"), len(passed)) == ("0.500", 0)
    failure, error = failed[0], unscored[0]
    assert (failure.tag, failure.get("message"), error.tag) == ("failure", "a < b", "error")
    assert failure.text == "o.yaml:5: a < b (probability of what is right: 0.020)"
    assert error.text == "o.yaml:9: empty (probability of what is right: none)"


@given(title=st.text(min_size=1), reason=st.text(min_size=1))
def test_any_text_makes_valid_xml(title: str, reason: str) -> None:
    result = CaseResult(title, "a", "pair", "fail", 0.1, reason, 0.0, Place(Path("o.yaml"), 1))
    run = CaseRun("own", "m", (result,), (), 0, 0, 0, 0, 0.0)
    case = next(ET.fromstring(junit_xml(run).encode()).iter("testcase"))
    name = case.get("name") or ""
    assert len(name) <= len(title)
    if title.isprintable():
        assert name == title
