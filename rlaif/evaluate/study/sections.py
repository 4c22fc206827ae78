"""A study as sections of sentences and tables, in the order that its page and its Markdown both
show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlaif.evaluate.comparison_words import points_of
from rlaif.evaluate.label_agreement import LabelAgreement
from rlaif.evaluate.study.arm_sections import models, policies, same_labels
from rlaif.evaluate.study.costs import cost, training
from rlaif.evaluate.study.document import Section, Table, amount_cell, share_cell
from rlaif.evaluate.study.limits import limits
from rlaif.evaluate.study.records import StudyReport
from rlaif.evaluate.study.summary import main_table, summary
from rlaif.evaluate.study.words import agreement_words, flipped_words
from rlaif.evaluate.wording import counted

NAMED = 3
"""Prompts told by name."""


def sections(report: StudyReport) -> Iterator[Section]:
    """The whole study but its summary, in order."""
    yield main_table(report)
    more = summary(report).more
    if more:
        yield Section("More warnings", more)
    yield _facts(report)
    yield _labels(report)
    yield models(report)
    yield policies(report)
    yield same_labels(report)
    yield cost(report)
    yield training(report)
    yield limits(report)


def _facts(report: StudyReport) -> Section:
    human, pairs = report.human, report.human.pairs
    left = {
        "called level": human.level,
        "repeated": human.repeated,
        "contradicted": human.contradicted,
        **human.skipped,
    }
    lost = ", ".join(f"{n:,} {why}" for why, n in left.items() if n)
    constitution = report.constitution
    rows = [
        ("People's data", f"{' + '.join(human.sets)} ({human.layout}, {human.rows:,} rows)"),
        ("Pairs", f"{pairs['train']:,} to train on, {pairs['test']:,} held out"),
        ("Of these, decided by the judge as well", _decided(report)),
        ("Left out", lost or "nothing"),
        ("Taken out of training as held out", _named(human.leaked)),
        ("Start of all arms", report.policy),
        ("Labelled by", report.labelled_by),
        ("Constitution", f"{constitution.id} {constitution.version} ({constitution.hash[:12]})"),
        ("Policies compared by", report.compared_by),
        ("Arms", ", ".join(report.arms)),
        ("Seeds an arm · seed", f"{report.seeds} · {report.seed}"),
        ("No difference worth having", f"within {points_of(report.margin)}"),
        ("rlaif", report.rlaif),
    ]
    return Section("What was studied", tables=[Table("", ("", ""), rows)])


def _decided(report: StudyReport) -> str:
    """What the arms are trained on, and accuracy by the judge's labels is of."""
    found = report.labels.by_split
    shares = (("train", "to train on"), ("test", "held out"))
    return ", ".join(
        f"{found[split].pairs - found[split].ai_ties:,} {meant}"
        for split, meant in shares
        if split in found
    )


def _named(prompts: Sequence[str]) -> str:
    """How many, and the first few."""
    more = ", …" if len(prompts) > NAMED else ""
    named = f": {', '.join(prompts[:NAMED])}{more}" if prompts else ""
    return f"{counted(len(prompts), 'prompt')}{named}"


def _labels(report: StudyReport) -> Section:
    found = report.labels
    by_split: dict[str, LabelAgreement] = {**found.by_split}  # type: ignore[dict-item]
    parts = [
        ("", by_split),
        ("judge sure: ", found.by_margin),
        ("people chose: ", found.by_length),
        ("source: ", found.by_source),
        ("principle: ", found.by_principle),
    ]
    rows = [("all pairs", found.every)]
    rows += [(before + name, of) for before, of_part in parts for name, of in of_part.items()]
    return Section(
        "Labels: the judge against people",
        [*agreement_words(report), *flipped_words(report)],
        [
            Table(
                "",
                ("", "pairs", "same winner", "kappa", "ties"),
                [
                    (
                        name,
                        f"{a.pairs:,}",
                        share_cell(a.accuracy),
                        amount_cell(a.kappa),
                        f"{a.ai_ties:,}",
                    )
                    for name, a in rows
                ],
                "Same winner: ties count half. Kappa: with ties as a third label; none where "
                "people give one label. A principle's own votes count by the same rule for ties.",
            )
        ],
        ["agreement"],
        found.surest,
    )
