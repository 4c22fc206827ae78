"""`rlaif score` and `rlaif best-of-n`: every row comes back, in order, as it was."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Finished
from transformers import AutoTokenizer, set_seed

from rlaif import rows as rows_module
from rlaif.errors import SetupError
from rlaif.rows import open_rows, row_writer
from rlaif.stages import scoring
from rlaif.train.loading import load_reward
from rlaif.train.reward_model import RewardModel
from rlaif.train.scale import RewardScale, write_scale
from rlaif.train.settings import check_directory
from rlaif.train.tiny import make_tiny
from rlaif.types import Message, Prompt, Response

pytestmark = pytest.mark.usefixtures("one_thread")
Cli = Callable[..., Finished]
Row = dict[str, Any]
SCALE = RewardScale(mean=(1.0,), std=(2.0,), responses=9, temperature=0.5, pairs=120)


@pytest.fixture(scope="module")
def rm(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models")
    make_tiny(folder / "base", seed=0)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    set_seed(0)
    model = load_reward(str(folder / "base"), tokenizer.pad_token_id, new_head=True)
    with torch.no_grad():
        model.score.weight *= 20
    model.save_pretrained(folder / "rm")
    tokenizer.save_pretrained(folder / "rm")
    write_scale(SCALE, folder / "rm")
    return str(folder / "rm")


@pytest.fixture(scope="module")
def scores(rm: str) -> Callable[[str, list[str]], list[float]]:
    """The scores that the class gives."""
    model = RewardModel.load(rm)

    def of(prompt: str, responses: list[str]) -> list[float]:
        return [s.score for s in model.score(prompt, responses) if s is not None]

    return of


Scores = Callable[[str, list[str]], list[float]]


def write(path: str | Path, *rows: Row) -> str:
    Path(path).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def read(path: str | Path) -> list[Row]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def turns(*texts: str) -> list[Row]:
    roles = ["user", "assistant"] * len(texts)
    return [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]


def test_each_layout_gets_its_columns_and_keeps_its_own(
    rm: str, scores: Scores, run_cli: Cli
) -> None:
    a, b = scores("Q", ["An answer", "No"])
    raw_a, raw_b = (2.0 * s + 1.0 for s in (a, b))
    one = {"score": a, "raw": [raw_a]}
    pair = {
        "score_chosen": a,
        "score_rejected": b,
        "p_chosen": 1 / (1 + math.exp(-(raw_a - raw_b) / 0.5)),
        "raw_chosen": [raw_a],
        "raw_rejected": [raw_b],
    }
    whole_a, whole_b = turns("Q", "An answer"), turns("Q", "No")
    for number, (row, added) in enumerate(
        [
            ({"id": 7, "prompt": "Q", "response": "An answer", "ü": None}, one),
            ({"prompt": turns("Q"), "response": [whole_a[1]]}, one),
            ({"messages": whole_a}, one),
            (
                {"prompt": "Q", "responses": ["An answer", "No"]},
                {"scores": [a, b], "raw": [[raw_a], [raw_b]]},
            ),
            ({"prompt": "Q", "chosen": "An answer", "rejected": "No"}, pair),
            ({"prompt": "Q", "chosen": whole_a, "rejected": whole_b}, pair),
            ({"chosen": whole_a, "rejected": whole_b}, pair),
        ]
    ):
        done = run_cli("score", rm, write(f"{number}.jsonl", row))
        assert done.code == 0, done
        (found,) = read(f"{number}-scored.jsonl")
        assert list(found) == [*row, *added]
        assert {name: found[name] for name in row} == row
        for name, value in added.items():
            assert sum(_flat(found[name])) == pytest.approx(sum(_flat(value)), abs=1e-5), name
    assert "chosen scores above rejected in" in done.out
    assert "p_chosen: temperature 0.5, of 120 held-out pairs" in done.out


def _flat(value: Any) -> list[float]:
    return [v for one in value for v in _flat(one)] if isinstance(value, list) else [value]


def test_no_row_is_lost_or_moved_by_chunks_and_windows(
    rm: str, scores: Scores, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "CHUNK", 4)
    rows = [{"prompt": f"Q{i}", "response": "x" * (i * 37 % 50)} for i in range(11)]
    done = run_cli("score", rm, write("many.jsonl", *rows))
    assert done.out.splitlines() == ["11 rows, 11 scores in many-scored.jsonl"]
    assert "11/11" in done.err
    found = read("many-scored.jsonl")
    assert [{k: row[k] for k in ("prompt", "response")} for row in found] == rows
    expected = [scores(row["prompt"], [row["response"]])[0] for row in rows]
    assert [row["score"] for row in found] == pytest.approx(expected, abs=1e-5)


def test_a_disk_that_is_full_when_a_parquet_file_is_closed_is_one_line(
    rm: str, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = pq.ParquetWriter.close

    def full(self: pq.ParquetWriter) -> None:
        close(self)
        if isinstance(self.where, Path):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "close", full)
    rows = write("r.jsonl", {"prompt": "Q", "response": "A"})
    for out in ("a.parquet", "folder"):
        said = run_cli("score", rm, rows, "--out", out).stopped()
        assert said.startswith(f"{out}: no disk space left")
    assert [p.name for p in Path().iterdir()] == ["r.jsonl"]


def test_rows_go_through_every_format_and_keep_their_types(
    rm: str, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "CHUNK", 2)
    # A field that comes late, an int that turns out to be a float, and None.
    rows = [
        {"prompt": "Q", "response": "A", "n": 1},
        {"prompt": turns("Q")[0]["content"], "response": "B", "n": None},
        {"prompt": "R", "response": "C", "n": 2.5, "late": [{"k": "v"}]},
    ]
    assert run_cli("score", rm, write("r.jsonl", *rows), "--out", "a.parquet").code == 0
    table = pq.read_table("a.parquet")
    assert table.schema.field("n").type == pa.float64()
    assert table["late"].to_pylist() == [None, None, [{"k": "v"}]]
    first = table["score"].to_pylist()

    assert run_cli("score", rm, "a.parquet", "--prefix", "b_", "--out", "b").code == 0
    saved = datasets.load_from_disk("b")
    assert saved["score"][:] == first
    assert saved["b_score"][:] == pytest.approx(first, abs=1e-6)

    assert run_cli("score", rm, "b", "--prefix", "c_").code == 0
    assert datasets.load_from_disk("b-scored").column_names[-2:] == ["c_score", "c_raw"]
    assert run_cli("score", rm, "b", "--prefix", "c_", "--out", "c.jsonl").code == 0
    assert [row["n"] for row in read("c.jsonl")] == [1.0, None, 2.5]
    assert sorted(p.name for p in Path().iterdir()) == [
        "a.parquet",
        "b",
        "b-scored",
        "c.jsonl",
        "r.jsonl",
    ]


def test_a_dataset_keeps_its_features_and_its_split_is_named(rm: str, run_cli: Cli) -> None:
    features = datasets.Features(
        {
            "prompt": datasets.Value("string"),
            "response": datasets.Value("string"),
            "kind": datasets.ClassLabel(names=["bad", "good"]),
        }
    )
    row = {"prompt": ["Q"], "response": ["A"], "kind": [1]}
    one = datasets.Dataset.from_dict(row, features=features)
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk("d")
    assert run_cli("score", rm, "d").refused() == (
        "d: has the splits train, test (name one: d@train)"
    )
    assert run_cli("score", rm, "d@tset").refused().startswith("d@tset: `datasets` cannot read it")
    assert run_cli("score", rm, "d@test").code == 0
    found = datasets.load_from_disk("d-test-scored")
    assert found.features["kind"] == features["kind"]
    assert found.features["score"] == datasets.Value("float64")
    assert found[0]["kind"] == 1
    assert run_cli("score", rm, "d@test", "--out", "d.parquet").code == 0
    again = datasets.Dataset.from_parquet("d.parquet", cache_dir="cache")
    assert again.features == found.features


def test_the_hub_is_read_by_name(rm: str, run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_dict({"prompt": ["Q"], "response": ["A"]})
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_: ["train"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, split: {"train": rows}[split])
    assert run_cli("score", rm, "hub:org/rows.v2").code == 0
    assert datasets.load_from_disk("rows-v2-scored").num_rows == 1


GOOD = {"prompt": "Q", "response": "A"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["{"], "r.jsonl:1: not valid JSON"),
        (["[1]"], "r.jsonl:1: a row must be an object"),
        ([""], "r.jsonl:1: the row is empty"),
        ([GOOD, "NaN"], "r.jsonl:2: not valid JSON: NaN is no number"),
        ([GOOD, {**GOOD, "x": "\ud800"}], "r.jsonl:2: x: JSON has no such value"),
        ([GOOD, '{"prompt": "Q", "response": "A", "x": 1e999}'], "r.jsonl:2: x: JSON has no"),
        ([{"text": "Q"}], "r.jsonl:1: unknown layout: the row has the fields 'text'"),
        ([GOOD, {"prompt": "Q"}], "r.jsonl:2: response: the row has none"),
        ([GOOD, {**GOOD, "response": 3}], "r.jsonl:2: response: found 3, a message was"),
        ([GOOD, {"response": "A"}], "r.jsonl:2: response: there is no prompt"),
        ([{**GOOD, "prompt": turns("Q", "A")}], "r.jsonl:1: the prompt must end with the user's"),
        ([{"messages": turns("Q")}], "r.jsonl:1: messages: the last message must be the assistant"),
        (
            [{"chosen": turns("Q", "A"), "rejected": turns("R", "A")}],
            "r.jsonl:1: chosen and rejected answer different prompts",
        ),
        ([{"prompt": "Q", "responses": "A"}], "r.jsonl:1: responses: a list was expected"),
        (
            [GOOD, {**GOOD, "score": 1}],
            "r.jsonl:2: score: is there already (drop that column, or give a --prefix)",
        ),
        ([], "r.jsonl: has no rows"),
        (
            [GOOD, '{"prompt": "Q", "response": "A", "x": ' + "1" * 5000 + "}"],
            "r.jsonl:2: an integer has too many digits (write it as text)",
        ),
        ([GOOD, {**GOOD, "\ud800": 1}], "r.jsonl:2: \\ud800: JSON has no such value"),
    ],
)
def test_a_bad_row_is_one_line_before_anything_is_scored(
    rm: str, run_cli: Cli, rows: list[Row | str], said: str
) -> None:
    Path("r.jsonl").write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    assert run_cli("score", rm, "r.jsonl").refused().startswith(said)
    assert [p.name for p in Path().iterdir()] == ["r.jsonl"]


def test_a_bad_row_of_a_later_chunk_is_named_by_its_line(
    rm: str, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "CHUNK", 2)
    name = write("r.jsonl", *[GOOD] * 4, {"prompt": "Q"}, GOOD)
    assert run_cli("score", rm, name).refused().startswith("r.jsonl:5: response: the row has none")


def test_a_bad_row_of_a_table_is_named_by_its_number(rm: str, run_cli: Cli) -> None:
    pq.write_table(pa.table({"prompt": ["Q", None], "response": ["A", "B"]}), "t.parquet")
    assert run_cli("score", rm, "t.parquet").refused().startswith("t.parquet: row 2: prompt: found")
    when = pa.array([datetime(2026, 1, 1)])
    pq.write_table(pa.table({"prompt": ["Q"], "response": ["A"], "when": when}), "w.parquet")
    line = run_cli("score", rm, "w.parquet", "--out", "w.jsonl").refused()
    assert line.startswith("w.parquet: row 1: when: JSON has no such value")
    assert "name an --out that ends in .parquet" in line
    assert run_cli("score", rm, "w.parquet").code == 0


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads a reward model has checked too little."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(RewardModel, "load", load)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    "name", ["outputs/nope", "outputs/nope/rm", "a/b/rm", "./rm", "/rm", "~/rm"]
)
def test_a_folder_that_is_not_there_is_looked_up_nowhere(run_cli: Cli, name: str) -> None:
    Path("outputs/other").mkdir(parents=True)
    write("outputs/other/config.yaml")
    line = run_cli("score", name, write("r.jsonl", GOOD)).refused()
    assert line.startswith(f"{name}: is not there")


def test_a_folder_that_is_called_as_an_organisation_hides_none_of_its_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("Qwen/other").mkdir(parents=True)
    check_directory("Qwen/Qwen2.5-0.5B-Instruct")
    with pytest.raises(SetupError, match=r"^Qwen/other: is no model directory"):
        check_directory("Qwen/other")
    Path("run").mkdir()
    write("run/config.yaml")
    with pytest.raises(SetupError, match=r"^run/reward_model: is not there"):
        check_directory("run/reward_model")


@pytest.mark.usefixtures("no_model")
def test_a_runs_folder_is_no_reward_model_and_has_one(run_cli: Cli) -> None:
    Path("run/reward_model").mkdir(parents=True)
    write("run/reward_model/config.json")
    assert run_cli("score", "run", write("r.jsonl", GOOD)).refused() == (
        "run: is no model directory: it has no config.json (do you mean run/reward_model?)"
    )


BIG = 2**60 + 1
NO_FIELD = "Parquet has no such type: Cannot write struct type"
NOT_HELD = "lines {} have an integer that a float does not hold, and other rows have a float there"


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("out", ["x.parquet", "x"])
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([{}, None, {}, {}], f"x: {NO_FIELD}"),
        ([None, None, [{}]], f"x: {NO_FIELD}"),
        ([{"a": [{"b": {}}]}], f"x: {NO_FIELD}"),
        ([1, BIG, 1, 2.5], f"x: {NOT_HELD.format('1 to 2')}"),
        ([1.5, 1, 1, -BIG], f"x: {NOT_HELD.format('3 to 4')}"),
        ([{"a": [BIG]}, None, None, {"a": [0.5]}], f"x.a.[]: {NOT_HELD.format('1 to 2')}"),
    ],
)
def test_what_parquet_cannot_hold_is_said_before_the_model_is_loaded(
    run_cli: Cli, monkeypatch: pytest.MonkeyPatch, out: str, values: list[Any], said: str
) -> None:
    monkeypatch.setattr(rows_module, "CHUNK", 2)
    write("r.jsonl", *({**GOOD, "x": value} for value in values))
    line = run_cli("score", "rm", "r.jsonl", "--out", out).refused()
    assert line.startswith(f"r.jsonl: {said}")
    assert line.endswith("(mend the rows, or name an --out that ends in .jsonl)")
    assert [p.name for p in Path().iterdir()] == ["r.jsonl"]


def test_large_integers_and_late_fields_go_through_where_parquet_holds_them(
    rm: str, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "CHUNK", 2)
    values = [{"n": BIG}, {"n": 2, "f": 2**53}, {}, {"f": 0.5}]
    write("r.jsonl", *({**GOOD, "x": value} for value in values))
    assert run_cli("score", rm, "r.jsonl", "--out", "x.parquet").code == 0
    assert pq.read_table("x.parquet")["x"].to_pylist() == [
        {"n": BIG, "f": None},
        {"n": 2, "f": 2.0**53},
        {"n": None, "f": None},
        {"n": None, "f": 0.5},
    ]


@pytest.mark.parametrize("out", ["x.parquet", "x"])
def test_rows_that_changed_after_they_were_checked_are_one_line(
    empty_place: Path, out: str
) -> None:
    source = open_rows(write("r.jsonl", {**GOOD, "x": 1}))
    writer = row_writer(Path(out), source, {"score": pa.float64()})
    (chunk,) = source.chunks()
    writer.see(chunk)
    chunk.rows[0]["x"] = "text"
    said = r"^r\.jsonl: its rows cannot be written to x"
    with pytest.raises(SetupError, match=said), writer.opened() as add:
        add(chunk, {"score": [1.0]})
    assert [p.name for p in empty_place.iterdir()] == ["r.jsonl"]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("out", ["x.parquet", "x.jsonl"])
def test_a_table_that_python_cannot_read_is_one_line(run_cli: Cli, out: str) -> None:
    good = pa.table({"prompt": ["Q"], "response": ["A"]})
    far = pa.array([10**18], pa.timestamp("us"))
    pq.write_table(good.append_column("when", far), "far.parquet")
    line = run_cli("score", "rm", "far.parquet", "--out", out).refused()
    assert line.startswith("far.parquet: when: rows 1 to 1: a value cannot be read: ")
    one = pa.array([1])
    pq.write_table(good.append_column("n", one).append_column("n", one), "twice.parquet")
    line = run_cli("score", "rm", "twice.parquet", "--out", out).refused()
    assert line == "twice.parquet: n: two columns have this name (rename one of them)"


@pytest.mark.parametrize("out", ["x.jsonl", "x.parquet", "x"])
def test_what_came_to_be_there_while_scoring_is_not_replaced(empty_place: Path, out: str) -> None:
    source = open_rows(write("r.jsonl", GOOD))
    writer = row_writer(Path(out), source, {"score": pa.float64()})
    (chunk,) = source.chunks()
    writer.see(chunk)

    def overtaken() -> None:
        with writer.opened() as add:
            add(chunk, {"score": [1.0]})
            Path(out).write_text("of another")

    with pytest.raises(SetupError, match=f"^{out}: is there already"):
        overtaken()
    assert Path(out).read_text() == "of another"
    assert sorted(p.name for p in empty_place.iterdir()) == ["r.jsonl", out]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.jsonl"], "absent.jsonl: is not there"),
        (["r.txt"], "r.txt: is of no known kind"),
        (["broken.parquet"], "broken.parquet: not a Parquet file"),
        (["r.jsonl", "--out", "x.csv"], "x.csv: is of no known kind"),
        (["r.jsonl", "--out", "r.txt"], "r.txt: is there already"),
        (["r.jsonl", "--how", "best"], "command line: how: found 'best'"),
        (["r.jsonl", "--max-length", "0"], "command line: max_length"),
        (["hub:rows"], "hub:rows: names no dataset"),
        (["mixed.jsonl", "--out", "x.parquet"], "mixed.jsonl: x: lines 1 to 2 or some"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    rm: str, run_cli: Cli, arguments: list[str], said: str
) -> None:
    write("r.jsonl", GOOD)
    write("mixed.jsonl", {**GOOD, "x": "text"}, {**GOOD, "x": 1})
    Path("r.txt").write_text("text")
    Path("broken.parquet").write_text("text")
    assert run_cli("score", rm, *arguments).refused().startswith(said)


def test_a_row_that_the_chat_template_refuses_is_named(
    rm: str, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = RewardModel.load.__func__  # type: ignore[attr-defined]

    def refusing(cls: type[RewardModel], *args: Any, **changes: Any) -> RewardModel:
        model: RewardModel = load(cls, *args, **changes)
        template = "{% if messages[0].content == 'R' %}{{ raise_exception('no R') }}{% endif %}"
        model._tokenizer.chat_template = template + str(model._tokenizer.chat_template)
        return model

    monkeypatch.setattr(RewardModel, "load", classmethod(refusing))
    line = run_cli("score", rm, write("r.jsonl", GOOD, {**GOOD, "prompt": "R"})).stopped()
    assert line.startswith("r.jsonl:2: the chat template of")
    assert not Path("r-scored.jsonl").exists()


def test_a_response_that_is_too_long_has_no_score_and_is_counted(rm: str, run_cli: Cli) -> None:
    long = {"prompt": "Q", "response": "long " * 20}
    pair = {"prompt": "Q", "chosen": "long " * 20, "rejected": "A"}
    done = run_cli("score", rm, write("r.jsonl", long, GOOD), "--max-length", "64")
    assert done.out.splitlines() == [
        "2 rows, 1 scores in r-scored.jsonl",
        "1 responses exceed 64 tokens and have no score",
    ]
    first, second = read("r-scored.jsonl")
    assert (first["score"], first["raw"]) == (None, None)
    assert second["score"] is not None
    assert run_cli("score", rm, write("p.jsonl", pair), "--max-length", "64").code == 0
    (found,) = read("p-scored.jsonl")
    assert (found["score_chosen"], found["p_chosen"]) == (None, None)


def test_the_best_of_n_is_the_first_of_the_highest_scores(
    rm: str, scores: Scores, run_cli: Cli
) -> None:
    texts = ["An answer", "No", "Why?", "It depends on many things"]
    values = scores("Q", texts)
    rows = [
        {"id": "a", "prompt": "Q", "responses": texts},
        {"id": "b", "prompt": "Q", "responses": texts[:2]},
        {"id": "c", "prompt": "Q", "responses": []},
    ]
    done = run_cli("best-of-n", rm, write("r.jsonl", *rows), "--out", "best.jsonl")
    assert done.out.splitlines() == [
        "3 rows in best.jsonl",
        "best of 0 to 4: at most 0.636 nats from the policy that drew them",
    ]
    first, second, third = read("best.jsonl")
    best = max(range(4), key=lambda k: values[k])
    assert first == {
        "id": "a",
        "prompt": "Q",
        "response": texts[best],
        "response_index": best,
        "score": pytest.approx(values[best], abs=1e-5),
        "n": 4,
        "kl": pytest.approx(math.log(4) - 3 / 4),
    }
    assert second["score"] == pytest.approx(max(values[:2]), abs=1e-5)
    assert third == {
        **{"id": "c", "prompt": "Q", "n": 0},
        **dict.fromkeys(("response", "response_index", "score", "kl")),
    }
    assert run_cli("best-of-n", rm, "r.jsonl", "--n", "1").code == 0
    one, *_ = read("r-best-of-n.jsonl")
    assert (one["response"], one["n"], one["kl"]) == (texts[0], 1, 0.0)
    assert (
        run_cli("best-of-n", rm, write("s.jsonl", GOOD))
        .refused()
        .startswith("s.jsonl:1: has no field 'responses'")
    )


@pytest.mark.usefixtures("no_model")
def test_an_n_that_no_row_has_is_refused_before_the_model_is_loaded(run_cli: Cli) -> None:
    rows = [{"prompt": "Q", "responses": ["a"] * k} for k in (2, 4, 3)]
    line = run_cli("best-of-n", "rm", write("r.jsonl", *rows), "--n", "5").refused()
    assert line == (
        "--n: found 5, and no row of r.jsonl has more than 4 responses (write 4, or leave it out)"
    )


def test_the_worst_of_one_member_is_refused(rm: str, run_cli: Cli) -> None:
    line = run_cli("score", rm, write("r.jsonl", GOOD), "--how", "worst").refused()
    assert line.startswith(f"how: found 'worst', and {rm} is no ensemble (leave it out;")
    assert not Path("r-scored.jsonl").exists()


def write_run(prompts: str, **answers: list[str]) -> None:
    """A run of prompts with one letter each, and the answers to some of them, in their order."""
    Path("run").mkdir()
    asked = [
        Prompt(id=name, messages=(Message(role="user", content=f"Q {name}"),)) for name in prompts
    ]
    responses = [
        Response(
            id=f"{name}/{k}",
            prompt_id=name,
            text=text,
            finish_reason="stop",
            model="served/m",
            call="0" * 64,
        )
        for name, texts in answers.items()
        for k, text in enumerate(texts)
    ]
    write("run/prompts.jsonl", *(p.model_dump(mode="json") for p in asked))
    write("run/responses.jsonl", *(r.model_dump(mode="json") for r in responses))


def test_the_best_of_n_takes_a_runs_folder(rm: str, scores: Scores, run_cli: Cli) -> None:
    write_run("ab", a=["yes", "no"])
    assert run_cli("best-of-n", rm, "run").code == 0
    first, second = read("run/best-of-n.jsonl")
    assert first["prompt_id"] == "a"
    assert first["prompt"] == turns("Q a")
    assert first["score"] == pytest.approx(max(scores("Q a", ["yes", "no"])), abs=1e-5)
    assert (second["prompt_id"], second["n"]) == ("b", 0)


def test_a_run_is_read_a_chunk_at_a_time_and_keeps_prompts_without_answers(
    rm: str, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "CHUNK", 2)
    write_run("abcdef", b=["yes"], d=["yes", "no"], e=["no"])
    sizes: list[int] = []
    scored = scoring._scored

    def counted(*asked: Any) -> Any:
        sizes.append(len(asked[2].rows))
        return scored(*asked)

    monkeypatch.setattr(scoring, "_scored", counted)
    assert run_cli("best-of-n", rm, "run").code == 0
    found = [(row["prompt_id"], row["n"]) for row in read("run/best-of-n.jsonl")]
    assert found == [("a", 0), ("b", 1), ("c", 0), ("d", 2), ("e", 1), ("f", 0)]
    assert sizes == [2, 2, 2]


@pytest.mark.usefixtures("no_model")
def test_a_run_whose_answers_stand_elsewhere_than_their_prompts_is_refused(run_cli: Cli) -> None:
    write_run("ab", b=["yes"], a=["no"])
    line = run_cli("best-of-n", "rm", "run").refused()
    assert line.startswith("run/responses.jsonl: 'a/0' does not come where its prompt does")


@pytest.mark.parametrize("out", ["x.jsonl", "x.parquet", "x"])
def test_an_error_in_the_middle_leaves_nothing(empty_place: Path, out: str) -> None:
    source = open_rows(write("r.jsonl", GOOD))
    writer = row_writer(Path(out), source, {"score": pa.float64()})
    (chunk,) = source.chunks()
    writer.see(chunk)

    def interrupted() -> None:
        with writer.opened() as add:
            add(chunk, {"score": [1.0]})
            raise SetupError("stop")

    with pytest.raises(SetupError, match="stop"):
        interrupted()
    assert [p.name for p in empty_place.iterdir()] == ["r.jsonl"]


@pytest.mark.parametrize("out", ["x.jsonl", "x"])
def test_what_a_killed_task_left_is_cleared_and_not_what_is_being_written(
    empty_place: Path, out: str
) -> None:
    (empty_place / f".{out}.old.unfinished").mkdir()
    (empty_place / f".{out}2.old.unfinished").touch()
    source = open_rows(write("r.jsonl", GOOD))
    (chunk,) = source.chunks()
    writer = row_writer(Path(out), source, {"score": pa.float64()})
    writer.see(chunk)
    with writer.opened() as add:
        row_writer(Path(out), source, {})
        assert len([*empty_place.glob(f".{out}.*.unfinished")]) == 1
        add(chunk, {"score": [1.0]})
    assert sorted(p.name for p in empty_place.iterdir()) == sorted(
        [f".{out}2.old.unfinished", "r.jsonl", out]
    )


def test_a_task_that_is_stopped_leaves_nothing_and_says_so(rm: str, empty_place: Path) -> None:
    write("r.jsonl", *({"prompt": f"Q{i}", "response": "x" * 2000} for i in range(3000)))
    with subprocess.Popen(
        [sys.executable, "-m", "rlaif", "score", rm, "r.jsonl"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    ) as task:
        deadline = time.monotonic() + 120
        while not list(empty_place.glob(".r-scored.jsonl.*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        task.send_signal(signal.SIGTERM)
        try:
            _, err = task.communicate(timeout=60)
        finally:
            task.kill()
    assert task.returncode == 130
    assert err.splitlines()[-1].startswith(
        "rlaif: stopped; nothing is written, this starts again: rlaif score"
    )
    assert [p.name for p in empty_place.iterdir()] == ["r.jsonl"]
