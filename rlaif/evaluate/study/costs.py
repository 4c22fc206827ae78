"""The sections of a study on what labels cost and on the trainings."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.arms import curve_arms
from rlaif.evaluate.study.document import Section, Table, share_cell, usd_cell
from rlaif.evaluate.study.records import Spent, StudyReport
from rlaif.evaluate.study.words import MODELS, rate_and_money
from rlaif.evaluate.wording import number


def cost(report: StudyReport) -> Section:
    of_cost = report.cost

    def row(name: str, of: Spent) -> Sequence[str]:
        counts = (of.calls, of.prompt_tokens, of.cached_tokens, of.completion_tokens)
        return (name, *(f"{n:,}" for n in counts), usd_cell(of.usd))

    tables = [
        Table(
            "Labels",
            ("", "labels", "US dollars a label", "US dollars"),
            [
                (
                    "people",
                    f"{of_cost.human_labels:,}",
                    usd_cell(of_cost.usd_per_human_label),
                    usd_cell(
                        None
                        if of_cost.usd_per_human_label is None
                        else of_cost.human_labels * of_cost.usd_per_human_label
                    ),
                ),
                (
                    "judge",
                    f"{of_cost.ai_labels:,}",
                    usd_cell(of_cost.usd_per_ai_label),
                    usd_cell(of_cost.labelling.usd),
                ),
            ],
        ),
        Table(
            "Calls",
            ("", "calls", "prompt tokens", "of them cached", "answered tokens", "US dollars"),
            [
                row("labelling", of_cost.labelling),
                row("the policies' answers", of_cost.answering),
                row("comparing the policies", of_cost.evaluating),
            ],
            "Each stored call once, whichever run of the command made it, and at the price that "
            "was given last. Models on one's own machine are free of charge here.",
        ),
    ]
    if report.curve is not None:
        human, ai = report.curve.human, report.curve.ai
        rows = zip(human.pairs, human.accuracies, ai.accuracies, strict=True)
        tables.append(
            Table(
                "Held-out accuracy of reward models by people's labels",
                ("training pairs", *curve_arms(report.arms)),
                [(f"{n:,}", share_cell(h), share_cell(a)) for n, h, a in rows],
            )
        )
    plots = ["learning_curve"] if report.curve is not None else []
    return Section("Cost, and what a label is worth", rate_and_money(report), tables, plots)


def training(report: StudyReport) -> Section:
    runs = report.training.runs
    whole = [t for t in runs if t.share == 1 and t.seed == 0 and t.arm == "human"]
    same = "All arms had" if not report.training.unequal else "Not all arms had the same; human had"
    said = [
        f"{same} {t.pairs:,} pairs, {t.steps:,} steps and {t.response_tokens:,} response tokens "
        f"({MODELS[t.kind]}, seed 0)."
        for t in whole
    ]
    rows = []
    for kind, name in MODELS.items():
        for arm in report.arms:
            of = [t for t in runs if (t.kind, t.arm, t.share) == (kind, arm, 1)]
            rows.append(
                (
                    f"{name}, {arm}",
                    " · ".join(number(t.losses[0]) for t in of),
                    " · ".join(number(t.losses[-1]) for t in of),
                )
            )
    return Section(
        "Training",
        said,
        [
            Table(
                "By seed",
                ("", "first loss", "last loss"),
                rows,
                "Losses of arms are not to be compared: soft labels have a loss that no model can "
                "go below. Every training stands in study.json, its time beside its scores.",
            )
        ],
        ["reward_model_loss", "dpo_loss"],
    )
