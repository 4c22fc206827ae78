"""YAML into typed records, and overrides on top: every mistake names its place and its mending."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from rlaif.config import describe, differences, dump_config, load_config
from rlaif.errors import SetupError
from rlaif.recipe import RunConfig
from rlaif.types import Record
from rlaif.yamlfile import YamlFile, dotted, load, validate


class Wheel(Record):
    size: float = Field(default=1.0, gt=0)
    """How wide."""
    colour: str = "black"


class Cart(Record):
    name: str
    wheels: tuple[Wheel, ...] = ()
    spare: Wheel = Wheel()
    load: int | None = None
    """What it carries."""


def written(folder: Path, text: str) -> Path:
    path = folder / "cart.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def mistake(folder: Path, text: str, *overrides: str) -> SetupError:
    with pytest.raises(SetupError) as caught:
        load_config(written(folder, text), overrides, Cart)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_good_file_becomes_the_record(tmp_path: Path) -> None:
    text = "name: a\nwheels:\n  - size: 2\n  - colour: red\nload: 3\n"
    assert load(written(tmp_path, text), Cart) == Cart(
        name="a", wheels=(Wheel(size=2.0), Wheel(colour="red")), load=3
    )


def test_an_unknown_field_names_the_nearest_one_and_its_line(tmp_path: Path) -> None:
    found = mistake(tmp_path, "name: a\nwheels:\n  - size: 2\n    color: red\n")
    assert str(found) == (
        f"{tmp_path}/cart.yaml:4: wheels[0].color: no such field 'color' (did you mean 'colour'?)"
    )


def test_an_unknown_field_that_a_section_has_names_the_section(tmp_path: Path) -> None:
    found = mistake(tmp_path, "name: a\ncolour: red\n")
    assert found.line == 2
    assert found.fix == "did you mean wheels.colour or spare.colour?"


def test_an_unknown_field_without_a_near_one_lists_what_there_is(tmp_path: Path) -> None:
    found = mistake(tmp_path, "name: a\nspare:\n  zzz: 1\n")
    assert (found.line, found.field, found.fix) == (3, "spare.zzz", "known: size, colour")


def test_a_misspelt_required_field_is_told_as_misspelt(tmp_path: Path) -> None:
    found = mistake(tmp_path, "load: 1\nnam: a\n")
    assert (found.line, found.field) == (2, "nam")
    assert found.fix == "did you mean 'name'?"


def test_a_missing_field_is_told_with_the_line_of_what_lacks_it(tmp_path: Path) -> None:
    found = mistake(tmp_path, "# a cart\nload: 1\n")
    assert (found.line, found.field, found.problem) == (2, "name", "is missing")


@pytest.mark.parametrize(
    ("text", "line", "field", "said"),
    [
        ("name: a\nspare:\n  size: -1\n", 3, "spare.size", "found -1"),
        ("name: a\nspare:\n  size: wide\n", 3, "spare.size", "found 'wide'"),
        ("name: 1.0\n", 1, "name", "found 1.0"),
        ("name: a\nwheels: 7\n", 2, "wheels", "found 7"),
        ("name: a\nwheels:\n  - 7\n", 3, "wheels[0]", "found 7"),
        ("name: 2024-01-01\n", 1, "name", "found date"),
    ],
)
def test_a_wrong_value_is_shown_with_line_and_field(
    tmp_path: Path, text: str, line: int, field: str, said: str
) -> None:
    found = mistake(tmp_path, text)
    assert (found.line, found.field, found.problem) == (line, field, said)
    assert found.fix


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("name: a\nload: [1, 2\n", 3, "not valid YAML"),
        ("name: a\n\tload: 1\n", 2, "not valid YAML"),
        ("name: 'a\n", 2, "not valid YAML"),
        ("name: a\n---\nname: b\n", 2, "not valid YAML"),
        ("name: *nowhere\n", 1, "not valid YAML"),
        ("", 1, "is empty or not a mapping"),
        ("- name\n", 1, "is empty or not a mapping"),
        ("name: a\nload: 1\nname: b\n", 3, "stands twice"),
        ("name: a\nload: 2024-13-45\n", 2, "not a plain value"),
        ("name: a\nload: !!int many\n", 2, "not a plain value"),
        ("name: !!python/name:os.system\n", 1, "not a plain value"),
        ("name: a\nspare: &s\n  size: *s\n", 2, "holds itself through an alias"),
    ],
)
def test_text_that_is_not_plain_yaml_is_refused_with_its_line(
    tmp_path: Path, text: str, line: int, said: str
) -> None:
    found = mistake(tmp_path, text)
    assert said in found.problem
    assert found.line == line


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cart.yaml"
    path.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(SetupError, match=":1: is not UTF-8: the byte 0xff"):
        YamlFile(path)


def test_an_alias_may_stand_twice_side_by_side(tmp_path: Path) -> None:
    text = "name: a\nwheels:\n  - &w {size: 2}\n  - *w\n"
    assert load(written(tmp_path, text), Cart).wheels == (Wheel(size=2), Wheel(size=2))


def test_an_override_wins_over_the_file_and_opens_sections(tmp_path: Path) -> None:
    path = written(tmp_path, "name: a\nload: 1\n")
    cart = load_config(path, ["load=2", "spare.colour=red", "wheels=[{size: 3}]"], Cart)
    assert cart == Cart(name="a", load=2, spare=Wheel(colour="red"), wheels=(Wheel(size=3),))


def test_an_empty_override_means_none(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "name: a\nload: 1\n"), ["load="], Cart).load is None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("laod=2", "command line: laod: no such field 'laod' (did you mean 'load'?)"),
        ("size=2", "no such field 'size' (did you mean wheels.size or spare.size?)"),
        ("spare.color=red", "spare.color: no such field 'color' (did you mean 'colour'?)"),
        ("zzz.size=1", "zzz.size: no such field 'zzz' (known: name, wheels, spare, load)"),
        ("spare.size=-1", "command line: spare.size: found -1 (input should be greater than 0)"),
        ("spare={colr: red}", "command line: spare.colr: no such field 'colr'"),
        ("wheels=[{size: 0}]", "command line: wheels[0].size: found 0"),
        ("load", "command line: 'load' is not an override (write section.field=value)"),
        ("=2", "command line: '=2' is not an override"),
        ("load.load=2", "command line: load.load: 'load' has no fields of its own"),
        ("name.name=2", "command line: name.name: 'name' has no fields of its own"),
        ("load=[", "command line: load: found '[' (not a value)"),
        ("load=2024-13-45", "command line: load: found '2024-13-45' (not a value)"),
    ],
)
def test_a_mistake_on_the_command_line_is_said_to_be_there(
    tmp_path: Path, override: str, said: str
) -> None:
    found = mistake(tmp_path, "name: a\n", override)
    assert said in str(found)
    assert found.line is None


def test_a_mistake_in_the_file_stays_the_files_with_an_override_beside_it(tmp_path: Path) -> None:
    found = mistake(tmp_path, "name: a\nspare:\n  size: 0\n", "load=2")
    assert (found.line, found.field) == (3, "spare.size")
    assert found.file == tmp_path / "cart.yaml"


class Brake(Record):
    force: float
    of: Wheel = Wheel()
    hand: bool = False

    @model_validator(mode="after")
    def _holds(self) -> Self:
        if self.hand and self.force < 1:
            raise ValueError("a hand brake needs a force of 1")
        return self


class Train(Record):
    name: str
    first: int = 1
    last: int = 9
    brake: Brake | None = None

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.first > self.last:
            raise ValueError("first is after last")
        return self


@pytest.mark.parametrize(
    ("text", "overrides", "told"),
    [
        ("name: a", ["first=10"], "command line: first: first is after last"),
        ("name: a\nfirst: 5", ["last=4"], "command line: last: first is after last"),
        ("name: a", ["first=6", "name=b", "last=4"], "first, last: first is after last"),
        ("{}", ["name=b", "first=10"], "command line: first: first is after last"),
        (
            "name: a\nbrake: {force: 0}",
            ["brake.of.size=2", "brake.hand=true"],
            "command line: brake.hand: a hand brake needs a force of 1",
        ),
        ("name: a", ["brake.hand=true"], "command line: brake.force: is missing"),
    ],
)
def test_fields_of_the_command_line_that_do_not_go_together_are_named(
    tmp_path: Path, text: str, overrides: list[str], told: str
) -> None:
    with pytest.raises(SetupError) as found:
        load_config(written(tmp_path, text), overrides, Train)
    assert told in str(found.value)
    assert str(found.value).startswith("command line: ")


@pytest.mark.parametrize("overrides", [[], ["name=b"], ["brake.force=1"], ["name=b", "last=8"]])
def test_fields_of_the_file_that_do_not_go_together_stay_the_files(
    tmp_path: Path, overrides: list[str]
) -> None:
    # The name is needed, too: that it comes from the command line does not make the mistake.
    name = "" if "name=b" in overrides else "name: a\n"
    path = written(tmp_path, f"{name}first: 10\n")
    with pytest.raises(SetupError, match="first is after last") as found:
        load_config(path, overrides, Train)
    assert found.value.file == path


@given(
    name=st.text(st.characters(codec="utf-8"), max_size=40),
    size=st.floats(min_value=1e-9, max_value=1e12),
    load=st.none() | st.integers(),
)
def test_a_dumped_config_reads_back_as_it_was(name: str, size: float, load: int | None) -> None:
    cart = Cart(name=name, spare=Wheel(size=size, colour=name), load=load)
    source = YamlFile(Path("cart.yaml"), dump_config(cart))
    assert validate(Cart, source.value, source) == cart


def test_a_dumped_config_keeps_letters_of_every_script_readable() -> None:
    assert "naïve 憲法" in dump_config(Cart(name="naïve 憲法"))


def test_differences_name_each_leaf_and_both_values() -> None:
    one = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    other = {"a": {"b": 2, "c": [1, 2]}, "d": None, "e": "x"}
    assert list(differences(one, other)) == ["a.b: 1 there, 2 now", "e: None there, 'x' now"]
    assert list(differences(one, one)) == []


def test_differences_are_short_and_show_no_section_as_it_is_kept() -> None:
    panel = [{"model": "a", "votes": 1}, {"model": "b", "votes": 1}]
    one = {"gate": None, "panel": panel, "more": panel, "text": "x"}
    other = {
        "gate": {"gold": ["hhh"], "limit": None},
        "panel": [panel[0], {"model": "c", "votes": 1}],
        "more": [],
        "text": "y" * 500,
    }
    assert list(differences(one, other)) == [
        "gate: None there, a section now",
        "more: a list of 2 there, [] now",
        "panel[1].model: 'b' there, 'c' now",
        f"text: 'x' there, '{'y' * 58}… now",
    ]


def test_a_place_is_written_as_a_person_would() -> None:
    assert dotted(("principles", 2, "weight")) == "principles[2].weight"
    assert dotted(()) == ""


def test_help_knows_every_field_of_a_section_and_of_one_that_may_be_left_out() -> None:
    assert list(describe(Cart)) == [
        ("name", "required", ""),
        ("wheels", "()", ""),
        ("wheels.size", "1.0", "How wide."),
        ("wheels.colour", "'black'", ""),
        ("spare.size", "1.0", "How wide."),
        ("spare.colour", "'black'", ""),
        ("load", "None", "What it carries."),
    ]


def test_every_field_of_a_recipe_is_documented() -> None:
    undocumented = [name for name, _, text in describe(RunConfig) if not text]
    assert undocumented == []
