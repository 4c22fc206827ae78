"""What each principle did to a finished run, and what another constitution would do: from what the
run has stored, without a call to a model."""

from __future__ import annotations

import difflib
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from rlaif.constitution import Constitution, load_constitution
from rlaif.constitution.writing import to_yaml
from rlaif.errors import SetupError
from rlaif.evaluate.attribution import GoldLabel, Smaller
from rlaif.evaluate.attribution_figures import attribute
from rlaif.evaluate.attribution_page import write_attribution
from rlaif.evaluate.attribution_words import sentences
from rlaif.evaluate.constitution_diff import diff
from rlaif.evaluate.diff_words import show
from rlaif.evaluate.label_diff import RunDiff, diff_labels
from rlaif.files import read_jsonl, write_text
from rlaif.judge.config import JudgeConfig
from rlaif.judge.recount import Labelled
from rlaif.types import Comparison, Judgment, Probability, Prompt, Record, Response
from rlaif.yamlfile import YamlFile, validate

GOLD = "gold pairs"
"""Source of the labels that the judge was certified on."""
AGAIN = "run the judge again with the same --out; stored calls cost nothing"
PART = 500
"""Calls looked up at once."""

Id = Annotated[str, StringConstraints(min_length=1)]


class HumanLabel(Record):
    """A row of a file of people's labels on a run's comparisons."""

    comparison_id: Id | None = None
    """As in comparisons.jsonl, or"""
    first: Id | None = None
    """the ids of the two responses, in either order."""
    second: Id | None = None
    p_first: Probability
    """1 the first is better, 0 the second is, 0.5 level, or the share of people who say so."""

    @model_validator(mode="after")
    def _names_a_pair(self) -> Self:
        by_id = self.comparison_id is not None
        by_both = self.first is not None and self.second is not None
        if by_id == by_both or (self.first is None) != (self.second is None):
            raise ValueError("a row names a pair by comparison_id, or by first and second")
        return self


class _RunConfig(BaseModel):
    """What of a run's config shapes its labels."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    seed: int = 0
    judge: JudgeConfig


def report_run(run: Path, human: Path | None) -> list[str]:
    """Writes attribution.json, attribution.html and, where a smaller constitution keeps the labels,
    suggested.yaml into the folder of a run that has labels. Returns what to tell.

    `human` is JSONL of `HumanLabel` rows. Raises SetupError where the run's parts, its config and
    its constitution do not fit together, and for a row of `human` that fits no comparison.
    """
    labelled = read_run(run)
    by_people: dict[str, Sequence[tuple[Comparison, float]]] = {}
    if gold := _gold(run, labelled):
        by_people[GOLD] = gold
    if human is not None:
        by_people[human.name] = read_human(human, labelled.comparisons)
    found = attribute(labelled, by_people)
    page = write_attribution(found, run)
    suggested = run / "suggested.yaml"
    if found.smaller is None:
        suggested.unlink(missing_ok=True)
    else:
        write_text(suggested, to_yaml(_smaller(labelled.constitution, found.smaller)))
    return [*sentences(found), f"attribution: {page}"]


def _smaller(constitution: Constitution, found: Smaller) -> Constitution:
    left_out = f"Without {', '.join(found.dropped)}."
    description = f"{constitution.description} {left_out}".strip()
    return constitution.only(found.kept).model_copy(update={"description": description})


def diff_constitutions(a: str, b: str, run: Path | None, pairs: int) -> list[str]:
    """Lines that tell what differs between two constitutions, by path or name; with a run also
    which of its labels would change from `a` to `b`, with at most `pairs` of them, and all of them
    in constitution-diff.json in the run's folder.

    Raises SetupError as `read_run` and `diff_labels` do.
    """
    one, other = load_constitution(a)[0], load_constitution(b)[0]
    changes = diff(one, other)
    if run is None:
        return show(changes)
    labels = diff_labels(read_run(run, one, other), one, other)
    found = RunDiff(constitutions=changes, labels=labels)
    path = run / "constitution-diff.json"
    plain = json.dumps(found.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False)
    write_text(path, plain + "\n")
    return [*show(changes, labels, pairs), "", f"all of it: {path}"]


def read_run(run: Path, *versions: Constitution) -> Labelled:
    """What a run has stored of its labels, with the constitution that made them: the one of
    `versions` that has its hash, else the one that its config names.

    Raises SetupError where the folder holds no labels, they are of other responses than the
    folder's, or no constitution with the run's hash is at hand.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise SetupError("holds no run (no config.yaml)", file=run, fix="name a run's folder")
    source = YamlFile(path)
    config = validate(_RunConfig, source.value, source)
    labeler = _labeler(run)
    constitution = _constitution(labeler["constitution"], config.judge, versions, path)
    judgments = read_jsonl(run / "judgments.jsonl", Judgment)
    comparisons = read_jsonl(run / "comparisons.jsonl", Comparison)
    if not comparisons:
        raise SetupError("holds no comparison", file=run / "comparisons.jsonl", fix=AGAIN)
    return Labelled(
        constitution,
        config.judge,
        config.seed,
        read_jsonl(run / "prompts.jsonl", Prompt),
        read_jsonl(run / "responses.jsonl", Response),
        judgments,
        comparisons,
        tokens_of(run / "calls.sqlite", {call for j in judgments for call in j.calls}),
    )


def _labeler(run: Path) -> Mapping[str, Any]:
    """What the run keeps of who made its labels."""
    path = run / "parts" / "labeler.json"
    if not path.is_file():
        raise SetupError("holds no labels", file=run, fix="run the judge first: rlaif judge")
    kept = json.loads(path.read_text(encoding="utf-8"))
    responses = run / "responses.jsonl"
    if not responses.is_file() or (
        kept["of"] != hashlib.sha256(responses.read_bytes()).hexdigest()
    ):
        raise SetupError("is not what the labels were made of", file=responses, fix=AGAIN)
    labeler: dict[str, Any] = kept["value"]
    return labeler


def _constitution(
    facts: Mapping[str, str], config: JudgeConfig, versions: Sequence[Constitution], path: Path
) -> Constitution:
    wanted = facts["hash"]
    for version in versions:
        if version.hash == wanted:
            return version
    named = f"{facts['id']} {facts['version']} ({wanted[:12]})"
    try:
        found, file = load_constitution(config.constitution)
    except SetupError as e:
        raise SetupError(
            f"the labels follow {named}, and {e.problem}",
            file=e.file or path,
            line=e.line,
            field=e.field if e.file else "judge.constitution",
            fix="bring that version back" + (", or name it as one of the two" if versions else ""),
        ) from e
    if found.hash != wanted:
        raise SetupError(
            f"has changed since the run: its hash is {found.hash[:12]}, the labels follow {named}",
            file=file,
            fix="name that version as one of the two, or label again with the new one"
            if versions
            else "bring that version back, or label again with the new one",
        )
    return found


def tokens_of(path: Path, calls: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Call -> prompt and completion tokens of its stored reply. The store is only read; none is
    made. Raises SetupError for a file that is no call store."""
    if not path.is_file():
        return {}
    found = {}
    # Without a log beside it nothing is in flight, and no file need be made to read the store.
    wal = path.with_name(path.name + "-wal")
    how = "mode=ro" if wal.is_file() else "immutable=1"
    wanted = sorted(calls)
    try:
        store = sqlite3.connect(f"file:{quote(str(path.resolve()))}?{how}", uri=True)
        try:
            for start in range(0, len(wanted), PART):
                part = wanted[start : start + PART]
                asked = f"SELECT key, reply FROM calls WHERE key IN ({','.join('?' * len(part))})"
                for key, reply in store.execute(asked, part):
                    told = json.loads(reply)
                    found[key] = (told["prompt_tokens"], told["completion_tokens"])
        finally:
            store.close()
    except sqlite3.Error as e:
        raise SetupError(f"the call store cannot be read: {e}", file=path) from e
    return found


def _gold(run: Path, labelled: Labelled) -> list[tuple[Comparison, float]]:
    """The gold pairs that the judge was asked about in just the way that the labels were made, if
    there are any: in the run's folder, or beside the certificate that its gate names."""
    gate = labelled.config.gate
    folder = Path(gate.certificate).parent if gate is not None and gate.certificate else run
    certificate, rows = folder / "certificate.json", folder / "certificate_pairs.jsonl"
    if not certificate.is_file() or not rows.is_file():
        return []
    told = json.loads(certificate.read_text(encoding="utf-8"))
    if told["way"] != _labeler(run)["way"]:
        return []
    judged = {c.id: c for c in read_jsonl(folder / "certificate_comparisons.jsonl", Comparison)}
    return [
        (judged[row.comparison_id], row.p_gold)
        for row in read_jsonl(rows, GoldLabel)
        if row.comparison_id in judged
    ]


def read_human(path: Path, comparisons: Sequence[Comparison]) -> list[tuple[Comparison, float]]:
    """People's labels on these comparisons; several on one are averaged. Raises SetupError with the
    line of a row that is none, or that fits no comparison."""
    by_id = {c.id: c for c in comparisons}
    by_pair = {(c.first, c.second): c for c in comparisons}
    said: dict[str, list[float]] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = HumanLabel.model_validate_json(line)
        except ValidationError as e:
            error = e.errors()[0]
            raise SetupError(
                error["msg"].removeprefix("Value error, "),
                file=path,
                line=number,
                field=".".join(map(str, error["loc"])),
                fix='such as {"comparison_id": "p/0|p/1", "p_first": 1}',
            ) from e
        p_first = row.p_first
        if row.comparison_id is not None:
            found, named = by_id.get(row.comparison_id), row.comparison_id
        else:
            pair = (row.first or "", row.second or "")
            named = "|".join(pair)
            found = by_pair.get(pair)
            if found is None and (found := by_pair.get(pair[::-1])) is not None:
                p_first = 1.0 - p_first
        if found is None:
            near = difflib.get_close_matches(named, by_id, n=1)
            raise SetupError(
                f"the run has no comparison {named!r}",
                file=path,
                line=number,
                fix=f"did you mean {near[0]!r}?" if near else "ids stand in comparisons.jsonl",
            )
        said.setdefault(found.id, []).append(p_first)
    if not said:
        raise SetupError("holds no labels", file=path, fix="one JSON object a line")
    means = {i: sum(given) / len(given) for i, given in said.items()}
    return [(by_id[i], 1.0 if p > 0.5 else 0.0 if p < 0.5 else 0.5) for i, p in means.items()]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise SetupError(f"cannot be read: {e}", file=path) from e
