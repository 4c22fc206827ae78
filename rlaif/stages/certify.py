"""Stage 2: the judge held against pairs that people have judged, before it labels anything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlaif import __version__
from rlaif.constitution import Constitution, facts, load_constitution
from rlaif.errors import JudgeFallsShort, SetupError
from rlaif.evaluate.attribution import GoldLabel
from rlaif.evaluate.certificate import (
    ALL,
    Certificate,
    CertificateCost,
    GoldFacts,
    Row,
    SweepRow,
)
from rlaif.evaluate.certificate_figures import figures
from rlaif.evaluate.certificate_page import write_certificate, write_sweep
from rlaif.evaluate.certificate_pairs import (
    Chosen,
    asked_about,
    gold_of,
    injected_of,
    injections_of,
    rows_of,
)
from rlaif.evaluate.certificate_words import shortfalls, warnings_of
from rlaif.evaluate.schema import CertificateSection, ConstitutionFacts
from rlaif.files import write_jsonl
from rlaif.judge.aggregate import Pair
from rlaif.judge.config import Gate, JudgeConfig, Mode
from rlaif.judge.forms import Asked, Form
from rlaif.judge.panel import Verdicts
from rlaif.models.client import Bill
from rlaif.progress import say
from rlaif.stages._asking import Judged, ask, try_to_ask
from rlaif.types import Record
from rlaif.workspace import Workspace

WAYS: tuple[tuple[Mode, str], ...] = (
    ("pairwise", "compare"),
    ("pairwise", "compare_plain"),
    ("structured", "compare_structured"),
    ("critique", "compare_critiqued"),
    ("reasoning", "compare_reasoned"),
    ("votes", "compare_voted"),
    ("pointwise", "pointwise"),
    ("pointwise", "pointwise_plain"),
    ("score", "score"),
    ("score", "score_plain"),
)
"""The ways to ask that a sweep tries: reading mode and template."""


class CertifyConfig(Record):
    """A certificate by itself, without a run."""

    seed: int = 0
    """Seeds the bootstrap and the principles drawn with `judge.principles: sample`."""
    judge: JudgeConfig


async def run(config: JudgeConfig, work: Workspace) -> None:
    """With a gate: writes certificate.json and certificate.html, or takes the one that the gate
    names. Raises JudgeFallsShort where a figure falls short of the gate."""
    if config.gate is None:
        work.drop_part("certificate")
        return
    constitution, _ = load_constitution(config.constitution)
    if config.gate.certificate is None:
        found = await certify(config, config.gate, constitution, work)
    else:
        found = read_certificate(Path(config.gate.certificate))
        if found.way != (way := await _way(config, constitution, work)):
            raise SetupError(
                f"certifies another way of asking ({found.way[:12]}) than this run's ({way[:12]}): "
                "the judge, its templates, the constitution or how answers are read differ",
                file=config.gate.certificate,
                field="judge.gate.certificate",
                fix="certify this one: rlaif certify, or judge.gate.gold",
            )
        found = _held_against(found, config.gate)
        write_certificate(found, work.directory)
    work.save_part("certificate", _section(found))
    if found.shortfalls:
        raise JudgeFallsShort(f"the judge falls short: {'; '.join(found.shortfalls)}")


async def certify(
    config: JudgeConfig, gate: Gate, constitution: Constitution, work: Workspace
) -> Certificate:
    """Asks the judge about the gold pairs, and about some of them with an injection in the worse
    response, and writes certificate.json and certificate.html into the run directory, with what the
    judge said of the gold pairs in certificate_*.jsonl beside them."""
    sets, chosen = gold_of(gate)
    async with work.stage("certify") as bill:
        asked = await ask(config, constitution, work, bill, asked_about(chosen))
        injected = injected_of(chosen, asked.verdicts.pairs, gate.injections)
        after = await ask(config, constitution, work, bill, [pair for _, pair in injected])
    rows = rows_of(chosen, asked.verdicts, constitution)
    of_set: dict[str, list[Row]] = defaultdict(list)
    for (gold_set, _), row in zip(chosen, rows, strict=True):
        of_set[gold_set.name].append(row)
    ceilings = {s.name: s.ceiling for s in sets}
    pooled = sets[0].ceiling if len(sets) == 1 else None
    found_figures = {name: figures(of, work.seed, ceilings[name]) for name, of in of_set.items()}
    found_figures[ALL] = figures(rows, work.seed, pooled)
    certificate = Certificate(
        rlaif=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=work.seed,
        judges=asked.verdicts.judges,
        asked=_asked_how(config),
        way=asked.verdicts.way,
        constitution=ConstitutionFacts.model_validate(facts(constitution)),
        part=gate.part,
        sets={
            s.name: GoldFacts(
                layout=s.layout,
                sha256=s.sha256,
                rows_read=len(s.pairs) + sum(s.skipped.values()),
                rows_used=len(of_set[s.name]),
                skipped=dict(s.skipped),
            )
            for s in sets
        },
        figures=found_figures,
        injections=injections_of(
            injected, after.verdicts, chosen, asked.verdicts, constitution, work.seed
        ),
        cost=_cost(config, asked),
        gate={},
        shortfalls=(),
        warnings=(),
    )
    certificate = _held_against(certificate, gate)
    certificate = certificate.model_copy(update={"warnings": warnings_of(certificate)})
    certificate = _kept(certificate, work.directory / "certificate.json")
    _write_rows(chosen, asked.verdicts, work.directory)
    write_certificate(certificate, work.directory)
    return certificate


def _write_rows(chosen: Chosen, verdicts: Verdicts, directory: Path) -> None:
    write_jsonl(directory / "certificate_judgments.jsonl", verdicts.judgments)
    write_jsonl(directory / "certificate_comparisons.jsonl", verdicts.comparisons)
    write_jsonl(
        directory / "certificate_pairs.jsonl",
        (
            GoldLabel(
                comparison_id=pair.id,
                prompt_id=pair.prompt.id,
                set=s.name,
                row=gold.id,
                p_gold=gold.p_gold,
            )
            for (s, gold), pair in zip(chosen, verdicts.pairs, strict=True)
        ),
    )


def _kept(certificate: Certificate, path: Path) -> Certificate:
    """The certificate with the date and the cost of the one that stands there, if it says the same:
    a rebuild from stored answers knows neither, and must give the same bytes."""
    try:
        before = read_certificate(path)
    except SetupError:  # none yet, or one of another version: it is written anew
        return certificate
    of_then = {"created": before.created, "cost": before.cost}
    again = certificate.model_copy(update=of_then)
    return again if again == before and not certificate.cost.calls_made else certificate


async def sweep(
    config: JudgeConfig, templates: Sequence[str], gate: Gate, work: Workspace
) -> list[SweepRow]:
    """The same gold pairs in every way of asking that we have, and with each of `templates` in the
    config's own mode. Writes sweep.json and sweep.html."""
    constitution, _ = load_constitution(config.constitution)
    sets, chosen = gold_of(gate)
    ceiling = sets[0].ceiling if len(sets) == 1 else None
    ways = [_asked_in(config, *way) for way in WAYS]
    ways += [_asked_in(config, config.mode, template) for template in templates]
    for tried in ways:
        # A template that is not there is found before any way is paid for.
        Form(tried, Asked(tried.model, gives_logprobs=True, max_n=1))
    rows = []
    async with work.stage("sweep") as bill:
        for tried in ways:
            named = {"way": tried.mode, "template": str(tried.template)}
            say(f"{tried.mode}, {tried.template} …")
            asked = await try_to_ask(tried, constitution, work, bill, asked_about(chosen))
            if isinstance(asked, str):
                rows.append(SweepRow(**named, failed=asked))
                continue
            found = figures(rows_of(chosen, asked.verdicts, constitution), work.seed, ceiling)
            rows.append(SweepRow(**named, figures=found, cost=_cost(tried, asked)))
    write_sweep(rows, work.directory)
    return rows


def _asked_in(config: JudgeConfig, mode: Mode, template: str) -> JudgeConfig:
    changes: dict[str, Any] = {"mode": mode, "template": template}
    if mode == "votes" and config.temperature == 0:
        changes["temperature"] = 1.0
    if mode == "score":
        changes["labels"] = None
    return JudgeConfig.model_validate({**config.model_dump(), "gate": None, **changes})


def check_gate(gate: Gate) -> None:
    """Reads what the gate names. Raises SetupError."""
    if gate.certificate is not None:
        read_certificate(Path(gate.certificate))
    else:
        gold_of(gate)


def pairs_of(gate: Gate) -> list[Pair]:
    """Every pair that a certificate asks about, those with injections last; none where the gate
    takes a certificate as it is. Raises SetupError."""
    if gate.certificate is not None:
        return []
    _, chosen = gold_of(gate)
    pairs = asked_about(chosen)
    return [*pairs, *(pair for _, pair in injected_of(chosen, pairs, gate.injections))]


async def _way(config: JudgeConfig, constitution: Constitution, work: Workspace) -> str:
    return (await ask(config, constitution, work, Bill(), [])).verdicts.way


def _cost(config: JudgeConfig, asked: Judged) -> CertificateCost:
    comparisons, total = len(asked.verdicts.comparisons), Bill()
    usd: float | None = 0.0
    prices = {field: judge.usd_per_million_tokens for field, judge in config.judges()}
    for field, bill in asked.bills.items():
        total.add(bill)
        price = prices[field]
        if price is None or usd is None:
            usd = None
        else:
            usd += (bill.prompt_tokens * price[0] + bill.completion_tokens * price[1]) / 1e6
    thousand = 1000 / comparisons
    return CertificateCost(
        comparisons=comparisons,
        calls_made=total.calls_made,
        calls_from_store=total.calls_from_store,
        calls_failed=total.calls_failed,
        prompt_tokens=total.prompt_tokens,
        completion_tokens=total.completion_tokens,
        prompt_tokens_per_1000=total.prompt_tokens * thousand,
        completion_tokens_per_1000=total.completion_tokens * thousand,
        seconds_per_1000=None if total.calls_from_store else total.asking_s * thousand,
        usd_per_1000=None if usd is None else usd * thousand,
    )


def _asked_how(config: JudgeConfig) -> dict[str, Any]:
    """How the judge is asked, for a reader: what differs from the defaults, and the mode."""
    plain = config.model_dump(mode="json", exclude_defaults=True)
    transport = {"server", "concurrency", "attempts", "timeout_s", "gate", "max_unscored"}
    told: dict[str, Any] = {"mode": config.mode, "both_orders": config.both_orders}
    for name, value in plain.items():
        if name not in transport | {"model"}:
            told[name] = value if isinstance(value, str | int | float | bool) else str(value)
    return told


def _held_against(certificate: Certificate, gate: Gate) -> Certificate:
    """The certificate with what this gate demands, and what it falls short of."""
    limits = {
        "min_agreement": gate.min_agreement,
        "max_position_bias": gate.max_position_bias,
        "max_unscored": gate.max_unscored,
    }
    return certificate.model_copy(
        update={
            "gate": {name: limit for name, limit in limits.items() if limit is not None},
            "shortfalls": shortfalls(certificate.figures[ALL], **limits),
        }
    )


def _section(certificate: Certificate) -> CertificateSection:
    found = certificate.figures[ALL]
    return CertificateSection(
        way=certificate.way,
        sets=tuple(certificate.sets),
        part=certificate.part,
        rows=found.rows,
        accuracy=found.accuracy,
        longer_wins=found.longer_wins,
        ceiling=found.ceiling.value if found.ceiling else None,
        ceiling_source=found.ceiling.source if found.ceiling else "",
        kappa=found.kappa,
        same_position=found.same_position,
        coverage=found.coverage,
        injection_success=certificate.injections.success if certificate.injections else None,
        demanded=certificate.gate,
        shortfalls=certificate.shortfalls,
        warnings=certificate.warnings,
    )


def read_certificate(path: Path) -> Certificate:
    """Raises SetupError for a file that is none."""
    field = "judge.gate.certificate"
    try:
        return Certificate.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise SetupError(f"cannot be read: {e}", file=path, field=field) from e
    except ValidationError as e:
        raise SetupError(
            f"is not a certificate: {e.errors()[0]['msg']}",
            file=path,
            field=field,
            fix="name the certificate.json that `rlaif certify` wrote",
        ) from e
