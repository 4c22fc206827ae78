"""Stage 2: the judge held against pairs that people have judged, before it labels anything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

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
    InjectionFigures,
    InjectionRow,
    Row,
    SweepRow,
)
from rlaif.evaluate.certificate_figures import figures, injection_figures
from rlaif.evaluate.certificate_page import write_certificate, write_sweep
from rlaif.evaluate.certificate_words import shortfalls, warnings_of
from rlaif.evaluate.schema import CertificateSection, ConstitutionFacts
from rlaif.files import digest, write_jsonl
from rlaif.gold import GoldPair, GoldSet, load_gold, part_of
from rlaif.judge.aggregate import Pair
from rlaif.judge.config import AskConfig, Gate, JudgeConfig, Mode
from rlaif.judge.forms import Asked, Form
from rlaif.judge.injections import CONTROLS, INJECTED, INJECTIONS, inject
from rlaif.judge.panel import Panel, Verdicts
from rlaif.models.client import Bill
from rlaif.progress import progress, say
from rlaif.types import Comparison, Judgment, Order, Record, Response
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

CANNOT = (".mode", ".labels", ".score_max")
"""Fields of which an error says that this judge cannot be asked in this way."""


class CertifyConfig(Record):
    """A certificate by itself, without a run."""

    seed: int = 0
    """Seeds the bootstrap and the principles drawn with `judge.principles: sample`."""
    judge: JudgeConfig


class _Asked(NamedTuple):
    verdicts: Verdicts
    bills: Mapping[str, Bill]
    """Field of the judge -> what it was asked for."""


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
    sets, chosen = _gold(gate)
    async with work.stage("certify") as bill:
        asked = await _ask(config, constitution, work, bill, _pairs(chosen))
        injected = _injected(chosen, asked.verdicts.pairs, gate.injections)
        after = await _ask(config, constitution, work, bill, [pair for _, pair in injected])
    rows = _rows(chosen, asked.verdicts, constitution)
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
        injections=_injections(
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


def _write_rows(
    chosen: Sequence[tuple[GoldSet, GoldPair]], verdicts: Verdicts, directory: Path
) -> None:
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
    sets, chosen = _gold(gate)
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
            try:
                asked = await _ask(tried, constitution, work, bill, _pairs(chosen))
            except SetupError as e:
                if not e.field.endswith(CANNOT):
                    raise
                rows.append(SweepRow(**named, failed=e.problem))
                continue
            found = figures(_rows(chosen, asked.verdicts, constitution), work.seed, ceiling)
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
        _gold(gate)


def pairs_of(gate: Gate) -> list[Pair]:
    """Every pair that a certificate asks about, those with injections last; none where the gate
    takes a certificate as it is. Raises SetupError."""
    if gate.certificate is not None:
        return []
    _, chosen = _gold(gate)
    pairs = _pairs(chosen)
    return [*pairs, *(pair for _, pair in _injected(chosen, pairs, gate.injections))]


def _gold(gate: Gate) -> tuple[list[GoldSet], list[tuple[GoldSet, GoldPair]]]:
    sets = [load_gold(name) for name in gate.gold]
    names = [s.name for s in sets]
    for name in names:
        if names.count(name) > 1 or name == ALL:
            raise SetupError(
                f"a gold set cannot be called {name!r}: another figure is",
                field="judge.gate.gold",
                fix="rename the file",
            )
    chosen = [(s, pair) for s in sets for pair in part_of(s.pairs, gate.part, gate.limit)]
    if all(pair.p_gold == 0.5 for _, pair in chosen):
        raise SetupError(
            f"of the gold sets {gate.part} has no pair with a better response",
            field="judge.gate.part",
            fix="use all, or more gold",
        )
    return sets, chosen


def _pairs(chosen: Sequence[tuple[GoldSet, GoldPair]]) -> list[Pair]:
    return [
        Pair(
            gold.prompt,
            _response(f"{s.name}:{gold.id}/first", gold, gold.first),
            _response(f"{s.name}:{gold.id}/second", gold, gold.second),
        )
        for s, gold in chosen
    ]


def _response(name: str, gold: GoldPair, text: str) -> Response:
    return Response(
        id=name, prompt_id=gold.prompt.id, text=text, finish_reason="stop", model="gold", call=""
    )


async def _ask(
    config: JudgeConfig,
    constitution: Constitution,
    work: Workspace,
    bill: Bill,
    pairs: Sequence[Pair],
) -> _Asked:
    bills: dict[str, Bill] = {}

    def open_client(asked: AskConfig, field: str) -> Any:
        return work.pool.open(asked, field, bills.setdefault(field, Bill()))

    panel = Panel(config, constitution, work.seed, open_client)
    try:
        verdicts = await panel.judge_pairs(pairs, progress)
    finally:
        for of_judge in bills.values():
            bill.add(of_judge)
    return _Asked(verdicts, bills)


async def _way(config: JudgeConfig, constitution: Constitution, work: Workspace) -> str:
    return (await _ask(config, constitution, work, Bill(), [])).verdicts.way


def _rows(
    chosen: Sequence[tuple[GoldSet, GoldPair]], verdicts: Verdicts, constitution: Constitution
) -> list[Row]:
    orders = _orders(verdicts, constitution)
    return [
        Row(
            id=pair.id,
            prompt_id=pair.prompt.id,
            p_gold=gold.p_gold,
            annotators=gold.annotators,
            p_first=comparison.p_first,
            outcome=comparison.outcome,
            reason=comparison.reason,
            p_forward=by_order.get("forward"),
            p_swapped=by_order.get("swapped"),
            len_first=len(gold.first),
            len_second=len(gold.second),
        )
        for (_, gold), pair, comparison, by_order in zip(
            chosen, verdicts.pairs, verdicts.comparisons, orders, strict=True
        )
    ]


def _orders(verdicts: Verdicts, constitution: Constitution) -> list[dict[Order, float]]:
    """`_by_order` of every comparison."""
    by_comparison: dict[str, list[Judgment]] = defaultdict(list)
    for judgment in verdicts.judgments:
        by_comparison[judgment.comparison_id].append(judgment)
    weights = {p.id: p.weight for p in constitution.principles}
    return [_by_order(c, by_comparison[c.id], weights) for c in verdicts.comparisons]


def _by_order(
    comparison: Comparison, judgments: Sequence[Judgment], weights: Mapping[str, float]
) -> dict[Order, float]:
    """P(first) in each order: the weighted mean over the judgments that the label stands on, which
    are those of the deciding judges under principles with all orders scored."""
    asked: dict[tuple[str, str], list[Judgment]] = defaultdict(list)
    for j in judgments:
        if not comparison.escalated or j.judge == comparison.judge:
            asked[j.judge, j.principle_id].append(j)
    given: dict[Order, list[tuple[float, float]]] = defaultdict(list)
    for (_, principle_id), orders in asked.items():
        scored = [(j.order, j.p_first) for j in orders if j.p_first is not None]
        if len(scored) == len(orders):
            for order, p in scored:
                given[order].append((p, weights[principle_id]))
    return {
        order: sum(p * w for p, w in votes) / sum(w for _, w in votes)
        for order, votes in given.items()
    }


class _Injected(NamedTuple):
    at: int
    """Which gold pair."""
    first: bool
    """Whether the injection is in the first response."""
    name: str
    kind: str


def _injected(
    chosen: Sequence[tuple[GoldSet, GoldPair]], pairs: Sequence[Pair], times: int
) -> list[tuple[_Injected, Pair]]:
    """Each injection in the worse response of `times` decided gold pairs, taken in turn from all
    sets."""
    decided = sorted(
        (i for i, (_, gold) in enumerate(chosen) if gold.p_gold != 0.5),
        key=lambda i: digest([chosen[i][0].name, chosen[i][1].id]),
    )
    found = []
    for n, injection in enumerate(i for i in (*INJECTIONS, *CONTROLS) for _ in range(times)):
        at = decided[n % len(decided)]
        pair, first = pairs[at], chosen[at][1].p_gold == 0.0
        worse = pair.first if first else pair.second
        changed = worse.model_copy(
            update={
                "id": f"{worse.id}{INJECTED}{injection.name}#{n}",
                "text": inject(worse.text, injection),
            }
        )
        pair = pair._replace(first=changed) if first else pair._replace(second=changed)
        found.append((_Injected(at, first, injection.name, injection.kind), pair))
    return found


def _injections(
    injected: Sequence[tuple[_Injected, Pair]],
    after: Verdicts,
    chosen: Sequence[tuple[GoldSet, GoldPair]],
    before: Verdicts,
    constitution: Constitution,
    seed: int,
) -> InjectionFigures | None:
    if not injected:
        return None
    orders_before, orders_after = _orders(before, constitution), _orders(after, constitution)
    orders: tuple[Order, ...] = ("forward", "swapped", "none")
    return injection_figures(
        [
            InjectionRow(
                name=what.name,
                kind=what.kind,
                prompt_id=chosen[what.at][1].prompt.id,
                before=tuple(_of(orders_before[what.at].get(o), what.first) for o in orders),
                after=tuple(_of(by_order.get(o), what.first) for o in orders),
            )
            for (what, _), by_order in zip(injected, orders_after, strict=True)
        ],
        seed,
    )


def _of(p_first: float | None, first: bool) -> float | None:
    return p_first if p_first is None or first else 1.0 - p_first


def _cost(config: JudgeConfig, asked: _Asked) -> CertificateCost:
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
