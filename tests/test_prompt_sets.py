"""Prompt sets: every row is read, or the file is refused with the row's number."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.datasets import load_prompts
from rlaif.errors import SetupError
from rlaif.types import Message, Prompt

ROW = '{"prompt": "Hello?"}'


def loaded(folder: Path, text: str, limit: int | None = None) -> tuple[Prompt, ...]:
    path = folder / "set.jsonl"
    path.write_text(text, encoding="utf-8")
    return load_prompts(str(path), limit)


def test_a_row_is_text_or_a_conversation(tmp_path: Path) -> None:
    chat = '{"id": "c", "tags": ["x"], "prompt": [{"role": "user", "content": "Hi"}]}'
    plain, named = loaded(tmp_path, f"{ROW}\n{chat}\n")
    assert plain.messages == (Message(role="user", content="Hello?"),)
    assert named == Prompt(id="c", messages=(Message(role="user", content="Hi"),), tags=("x",))


def test_a_row_without_an_id_is_named_by_what_it_says(tmp_path: Path) -> None:
    (one,) = loaded(tmp_path, ROW)
    (same,) = loaded(tmp_path, '{"tags": [], "prompt": [{"role": "user", "content": "Hello?"}]}')
    (other,) = loaded(tmp_path, '{"prompt": "Hello!"}')
    assert one.id == same.id != other.id


def test_the_limit_keeps_the_first_rows(tmp_path: Path) -> None:
    text = "".join(f'{{"id": "{i}", "prompt": "{i}?"}}\n' for i in range(4))
    assert [p.id for p in loaded(tmp_path, text, 3)] == ["0", "1", "2"]


def test_a_limit_above_the_number_of_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"5 prompts were asked for, the file has 1 \(lower"):
        loaded(tmp_path, ROW, 5)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_how_the_last_row_ends_does_not_matter(tmp_path: Path, end: str) -> None:
    assert len(loaded(tmp_path, ROW + end)) == 1


@pytest.mark.parametrize(
    ("row", "field", "said"),
    [
        ('{"prompt": "Hi"', "", "not valid JSON: Expecting ',' delimiter, column 16"),
        ("Hello?", "", "not valid JSON"),
        ("", "", "the row is empty (delete the line)"),
        ("   ", "", "the row is empty"),
        ("null", "", "a row must be a JSON object, found NoneType"),
        ('["Hi"]', "", "a row must be a JSON object, found list"),
        ("{}", "", "the row has no field 'prompt'"),
        ('{"text": "Hi"}', "", "unknown field 'text'; a row has prompt, id, tags"),
        ('{"prompt": ""}', "", "the prompt is empty"),
        ('{"prompt": " \\n "}', "", "the prompt is empty"),
        ('{"prompt": 7}', "", "prompt must be text or a list of messages"),
        ('{"prompt": null}', "", "prompt must be text or a list of messages"),
        ('{"prompt": []}', "prompt", "at least 1 item"),
        ('{"prompt": ["Hi"]}', "prompt[0]", "valid dictionary"),
        ('{"prompt": [{"role": "user"}]}', "", "the prompt is empty"),
        ('{"prompt": [{"role": "robot", "content": "Hi"}]}', "prompt[0].role", "Input should be"),
        ('{"prompt": [{"role": "user", "content": 7}]}', "prompt[0].content", "valid string"),
        ('{"prompt": [{"role": "user", "content": "a", "x": 1}]}', "prompt[0].x", "not permitted"),
        (
            '{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
            "prompt",
            "the last message of a prompt must be the user's",
        ),
        ('{"id": 7, "prompt": "Hi"}', "id", "valid string"),
        ('{"id": "", "prompt": "Hi"}', "", "the id is empty"),
        ('{"id": null, "prompt": "Hi"}', "id", "valid string"),
        ('{"tags": "x", "prompt": "Hi"}', "tags", "valid tuple"),
        ('{"id": "s", "prompt": "\\ud800"}', "", "surrogates not allowed"),
        ('{"prompt": "\\ud800"}', "", "surrogates not allowed"),
        (ROW, "", "stands twice (ids must be unique)"),
    ],
)
def test_a_broken_row_is_told_by_its_number(
    tmp_path: Path, row: str, field: str, said: str
) -> None:
    with pytest.raises(SetupError) as caught:
        loaded(tmp_path, f"{ROW}\n{row}\n" + '{"prompt": "Later?"}\n')
    assert said in str(caught.value)
    assert (caught.value.line, caught.value.field) == (2, field)
    assert str(caught.value).startswith(f"{tmp_path}/set.jsonl:2: ")


@pytest.mark.parametrize("text", ["", "\n"])
def test_a_file_without_rows_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SetupError, match=r"has no rows|the row is empty"):
        loaded(tmp_path, text)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes(b'{"prompt": "caf\xe9"}\n')
    with pytest.raises(SetupError, match="is not UTF-8 text"):
        load_prompts(str(path))


def test_a_missing_set_lists_the_ones_there_are() -> None:
    with pytest.raises(SetupError, match="one of: everyday, harmful, sensitive, smoke"):
        load_prompts("nowhere")
