"""`rlaif constitution …` as a user types it: what is printed, what is written, how it exits."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Finished

from rlaif.constitution import json_schema, load_constitution

Cli = Callable[..., Finished]
KNOWS = "fake/knows?constitution=concise"


def test_a_new_constitution_lints_passes_its_tests_and_is_never_written_over(run_cli: Cli) -> None:
    done = run_cli("constitution", "new", "mine.yaml")
    assert done.out.splitlines() == ["wrote mine.yaml", "wrote constitution.schema.json"]
    assert json.loads(Path("constitution.schema.json").read_text("utf-8")) == json_schema()
    assert "$schema=constitution.schema.json" in Path("mine.yaml").read_text("utf-8")
    done = run_cli("constitution", "lint", "mine.yaml", "--strict")
    assert (done.code, done.out) == (0, "0 errors, 0 warnings in 1 files\n")
    judge = "fake/knows?constitution=mine.yaml"
    done = run_cli("constitution", "test", "mine.yaml", "--judge", judge)
    assert done.code == 0, done.out
    before = Path("mine.yaml").read_bytes()
    line = run_cli("constitution", "new", "mine.yaml").refused()
    assert line == "mine.yaml: is there already (choose another name, or move it away)"
    assert Path("mine.yaml").read_bytes() == before
    assert "is not called *.yaml" in run_cli("constitution", "new", "mine.txt").refused()


def test_show_fills_in_every_wording(run_cli: Cli) -> None:
    Path("mine.yaml").write_text("extends: concise\nprinciples:\n  - Be kind.\n")
    done = run_cli("constitution", "show", "mine.yaml")
    assert "be-kind: weight 1 (33%), 0 tests" in done.out
    assert "revision: Rewrite the response so that it follows this rule: Be kind." in done.out
    assert f"sha256 {load_constitution('mine.yaml')[0].hash}" in done.out
    plain = json.loads(run_cli("constitution", "show", "mine.yaml", "--json").out)
    assert plain["hash"] == load_constitution("mine.yaml")[0].hash
    assert [p["id"] for p in plain["principles"]] == ["answer-first", "no-padding", "be-kind"]


def test_lint_names_file_and_line_and_exits_with_1_on_an_error(run_cli: Cli) -> None:
    Path("mine.yaml").write_text("- text: Be kind.\n  comparison: 'Which is {{ best }}?'\n")
    done = run_cli("constitution", "lint", "mine.yaml")
    assert done.code == 1
    assert done.out.startswith("mine.yaml:2: error: ")
    assert "the variable 'best' is not given to a wording" in done.out
    assert done.err == "rlaif: the constitution does not lint\n"


def test_lint_warnings_fail_only_when_asked_to(run_cli: Cli) -> None:
    Path("mine.yaml").write_text("- Be kind to everyone.\n")
    done = run_cli("constitution", "lint", "mine.yaml")
    assert (done.code, done.out.splitlines()[-1]) == (0, "0 errors, 1 warnings in 1 files")
    assert run_cli("constitution", "lint", "mine.yaml", "--strict").code == 1


def test_lint_with_a_prompt_set_finds_what_none_of_it_meets(run_cli: Cli) -> None:
    Path("mine.yaml").write_text("- text: Be kind.\n  applies_when: \"'poem' in tags\"\n")
    assert "poem" not in run_cli("constitution", "lint", "mine.yaml").out
    done = run_cli("constitution", "lint", "mine.yaml", "--prompts", "smoke")
    assert "mine.yaml:2: " in done.out


def test_lint_with_a_judge_asks_it_about_every_test_under_every_principle(run_cli: Cli) -> None:
    done = run_cli("constitution", "lint", "concise", "--judge", "fake/shorter")
    assert done.code == 0
    assert done.out.splitlines() == [
        "concise: 18 of 20 votes on its tests name a winner",
        "0 errors, 0 warnings in 1 files",
    ]
    assert "judging" in done.err


def test_a_test_run_prints_a_table_and_junit_and_costs_nothing_again(run_cli: Cli) -> None:
    given = ("constitution", "test", "concise", "--judge", KNOWS)
    done = run_cli(*given, "--junit", "tests.xml")
    assert done.code == 0
    assert "14 pass, 0 fail, 0 unscored; 28 calls, 0 from the store" in done.out
    suites = ET.parse("tests.xml").getroot()
    assert (suites.get("tests"), suites.get("failures"), suites.get("errors")) == ("14", "0", "0")
    assert "0 calls, 28 from the store" in run_cli(*given).out


def test_a_failing_test_exits_with_1_and_an_unscored_one_too(run_cli: Cli) -> None:
    done = run_cli("constitution", "test", "concise", "--judge", f"{KNOWS}&wrong=0.4")
    assert done.code == 1
    assert done.err.splitlines()[-1].endswith("of 14 tests did not pass")
    done = run_cli("constitution", "test", "concise", "--judge", "fake/refuse")
    assert done.code == 1
    assert "0 pass, 0 fail, 14 unscored" in done.out


def test_only_some_principles_are_tested(run_cli: Cli) -> None:
    given = ("constitution", "test", "concise", "--judge", KNOWS)
    assert "6 tests of concise" in run_cli(*given, "--only", "no-padding").out
    line = run_cli(*given, "--only", "no-pading").refused()
    assert "there is no principle 'no-pading'" in line
    assert "did you mean 'no-padding'?" in line


def test_the_judge_is_asked_as_the_fields_say(run_cli: Cli) -> None:
    done = run_cli("constitution", "test", "concise", "--judge", KNOWS, "judge.mode=structured")
    assert done.code == 0
    line = run_cli("constitution", "test", "concise", "--judge", KNOWS, "judge.mod=votes").refused()
    assert "no such field 'mod'" in line


def test_other_peoples_constitutions_become_ours_and_go_back(run_cli: Cli) -> None:
    theirs = ["\nChoose the kinder response. Options:", "\nWhich is more honest? Options:"]
    Path("cai.json").write_text(json.dumps(theirs))
    done = run_cli("constitution", "import", "cai.json", "--id", "kind")
    assert "2 principles from cai-comparison: kind.yaml" in done.out
    assert len(load_constitution("kind.yaml")[0].principles) == 2
    line = run_cli("constitution", "import", "cai.json", "--id", "kind").refused()
    assert line.startswith("kind.yaml: is there already")
    run_cli("constitution", "export", "kind.yaml", "--to", "cai-comparison", "--out", "back.json")
    assert json.loads(Path("back.json").read_text("utf-8")) == theirs
    assert (
        "did you mean"
        in run_cli("constitution", "import", "cai.json", "--format", "cai-comparisons").refused()
    )


@pytest.mark.parametrize("judge", ["fake/refuse", "fake/first"])
def test_a_judge_that_decides_nothing_does_not_make_a_constitution_clean(
    run_cli: Cli, judge: str
) -> None:
    done = run_cli("constitution", "lint", "concise", "--judge", judge, "--strict")
    assert done.code == 1
    assert "concise: 0 of 20 votes on its tests name a winner" in done.out
    assert "this judge decides nothing" in done.out


def test_what_a_format_cannot_hold_is_not_left_out(run_cli: Cli) -> None:
    line = run_cli("constitution", "export", "concise", "--to", "icai").refused()
    assert "icai cannot hold" in line


def test_what_a_test_run_is_told_twice_is_refused(run_cli: Cli) -> None:
    Path("t.xml").write_text("of another run")
    line = run_cli(
        *("constitution", "test", "concise", "--judge", KNOWS, "judge.constitution=hhh"),
        *("--junit", "t.xml"),
    ).refused()
    assert line.startswith("judge.constitution: stands twice")
    # Results of another run must not be taken for those of this one.
    assert not Path("t.xml").exists()


def test_questions_that_come_with_a_constitution_are_kept_as_prompts(run_cli: Cli) -> None:
    row = {
        "trait": "I say what I do not know.",
        "clarification": "",
        "questions": ["Who wins next year?", "How deep is this lake?"],
    }
    Path("character.jsonl").write_text(json.dumps(row) + "\n")
    done = run_cli("constitution", "import", "character.jsonl", "--id", "honest")
    assert done.code == 0, done.err
    rows = Path("honest.prompts.jsonl").read_text("utf-8").splitlines()
    asked = [json.loads(line)["prompt"][-1]["content"] for line in rows]
    assert asked == row["questions"]


def test_diff_says_what_changed(run_cli: Cli) -> None:
    own = "[{id: answer-first, weight: 3}, Be kind.]"
    Path("mine.yaml").write_text(f"extends: concise\ndrop: [no-padding]\nprinciples: {own}\n")
    done = run_cli("constitution", "diff", "concise", "mine.yaml")
    assert done.code == 0
    for said in ("no-padding", "answer-first", "weight", "be-kind"):
        assert said in done.out


@pytest.mark.parametrize("command", ["show", "lint", "test"])
def test_a_misspelt_name_is_told_with_the_nearest(run_cli: Cli, command: str) -> None:
    more = ("--judge", KNOWS) if command == "test" else ()
    done = run_cli("constitution", command, "consise", *more)
    assert done.code == 2
    assert "did you mean 'concise'?" in done.out + done.err


def test_the_schema_is_printed(run_cli: Cli) -> None:
    assert json.loads(run_cli("constitution", "schema").out) == json_schema()


def test_a_report_of_no_run_is_refused(run_cli: Cli) -> None:
    assert "nowhere" in run_cli("constitution", "report", "nowhere").refused()
    assert (
        "nowhere" in run_cli("constitution", "diff", "hhh", "concise", "--run", "nowhere").refused()
    )


def test_a_run_is_reported_on_without_a_call(run_cli: Cli) -> None:
    smoke = ("smoke", "judge.constitution=hhh", "--out", "run")
    for stage in ("sample", "judge"):
        assert run_cli(stage, *smoke).code == 0
    calls = Path("run/calls.sqlite").read_bytes()
    done = run_cli("constitution", "report", "run")
    assert done.code == 0, done.err
    for principle in ("helpful", "honest", "harmless"):
        assert principle in done.out
    assert Path("run/calls.sqlite").read_bytes() == calls
    assert json.loads(Path("run/attribution.json").read_text("utf-8"))["principles"]
    done = run_cli("constitution", "diff", "hhh", "hhh", "--run", "run")
    assert done.code == 0, done.err
    Path("less.yaml").write_text("extends: hhh\ndrop: [honest]\n")
    done = run_cli("constitution", "diff", "hhh", "less.yaml", "--run", "run")
    assert "honest" in done.out
