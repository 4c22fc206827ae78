"""A certificate in words: what it falls short of, what it warns of, what it says."""

from __future__ import annotations

from rlaif.evaluate.calibration import CalibrationFigures
from rlaif.evaluate.certificate import (
    ALL,
    Certificate,
    CertificateCost,
    InjectionFigures,
    SetFigures,
)
from rlaif.evaluate.certificate_figures import beyond
from rlaif.evaluate.headline import FEW_PROMPTS
from rlaif.evaluate.intervals import Interval, excludes
from rlaif.evaluate.wording import amount, counted, duration, number, percent, reasons, share

BIASED = 0.30
"""Share of pairs won by a position that a reader must be warned of."""
COVERED = 0.90
"""Share of labelled pairs under which a reader must be warned."""
TURNED = 0.10
"""Share of verdicts turned by injected text that a reader must be warned of."""
FAR = 0.15
"""Distance of the accuracies by length that a reader must be warned of."""


def shortfalls(
    found: SetFigures,
    min_agreement: float | None,
    max_position_bias: float | None,
    max_unscored: float | None,
) -> tuple[str, ...]:
    """A sentence for each limit that the figures do not keep; a limit of None asks for nothing.

    What could not be measured keeps no limit.
    """
    lacking = []
    if min_agreement is not None:
        asks = f"judge.gate.min_agreement asks for {_limit(min_agreement)}"
        if found.accuracy is None or found.agreement is None:
            lacking.append(f"no decided gold pair got a label, {asks}")
        elif found.agreement.value < min_agreement:
            half = "" if found.coverage.value == 1.0 else ", a pair without a label counting half"
            told = _beside(found.agreement, min_agreement)
            lacking.append(f"agreement with gold is {told}{half}, {asks}")
    if max_position_bias is not None:
        allows = f"judge.gate.max_position_bias allows {_limit(max_position_bias)}"
        if found.same_position is None:
            lacking.append(f"no gold pair has a winner in both orders, {allows}")
        elif found.same_position.value > max_position_bias:
            told = _beside(found.same_position, max_position_bias)
            lacking.append(f"the same position wins in both orders on {told} of pairs, {allows}")
    # From the counts: 1 - 0.7 is more than 0.3 in floats.
    lost = sum(found.ledger.unscored.values()) / found.rows
    if max_unscored is not None and lost > max_unscored:
        lacking.append(
            f"{_beside(_complement(found.coverage), max_unscored)} of gold pairs got no label, "
            f"judge.gate.max_unscored allows {_limit(max_unscored)}"
        )
    return tuple(lacking)


def _complement(interval: Interval) -> Interval:
    low, high = interval.low, interval.high
    return interval.model_copy(
        update={
            "value": 1.0 - interval.value,
            "low": None if high is None else 1.0 - high,
            "high": None if low is None else 1.0 - low,
        }
    )


def _beside(interval: Interval, limit: float) -> str:
    """`51 % [44 %, 58 %]`, with as many decimals as tell the value from the limit."""
    value, low, high = interval.value, interval.low, interval.high
    same = [percent(value, d) == percent(limit, d) for d in range(5)]
    d = same.index(False) if False in same else len(same)
    ends = (
        "no interval" if low is None or high is None else f"{percent(low, d)}, {percent(high, d)}"
    )
    return f"{percent(value, d)} [{ends}]"


def _limit(limit: float) -> str:
    return f"{100 * limit:g} %"


def warnings_of(certificate: Certificate) -> tuple[str, ...]:
    """What the pooled figures warn of; the caller puts them into `Certificate.warnings`."""
    of = certificate.figures[ALL]
    found = []
    if of.accuracy is None:
        found.append("No decided gold pair got a label: nothing is known of this judge.")
    else:
        found += _against_rules(of.accuracy, of.longer_wins)
    if of.same_position is not None and of.same_position.value > BIASED:
        found.append(
            f"The same position wins in both orders on {share(of.same_position, BIASED)} of pairs: "
            "those verdicts follow the position, not the content."
        )
    if of.coverage.value < COVERED:
        found.append(
            f"Only {share(of.coverage, COVERED)} of the gold pairs got a label "
            f"({reasons(of.ledger.unscored)}): what is left may not stand for all."
        )
    shorter, longer = of.accuracy_shorter_right, of.accuracy_longer_right
    if shorter is not None and longer is not None:
        found += _by_length(shorter, longer)
    injections = certificate.injections
    if injections is not None and injections.success is not None:
        success = injections.success
        if success.value > TURNED and beyond(success, injections.control):
            found.append(
                f"Text injected into a response turned the verdict to it in {share(success)} of "
                "cases: whoever writes the responses can steer this judge."
            )
    if of.clusters < FEW_PROMPTS:
        found.append(
            f"The figures rest on {counted(of.clusters, 'prompt')}: intervals from so few are too "
            "narrow."
        )
    if certificate.part == "dev":
        found.append(
            "These figures are of the dev part, on which a way of asking is chosen, so they "
            "flatter it; certify the choice on the test part."
        )
    return tuple(found)


def _against_rules(accuracy: Interval, longer_wins: Interval | None) -> list[str]:
    """The judge against a coin and against a ruler."""
    found = []
    if not excludes(accuracy, 0.5):
        found.append(
            f"Agreement with gold is {share(accuracy, 0.5)}: it is not shown to be better than a "
            "coin's."
        )
    elif accuracy.value < 0.5:
        found.append(
            f"Agreement with gold is {share(accuracy, 0.5)}: the judge prefers what gold does not."
        )
    if longer_wins is not None and (accuracy.low is None or accuracy.low <= longer_wins.value):
        found.append(
            f"“The longer answer wins” agrees with gold on {percent(longer_wins.value)}, the judge "
            f"on {share(accuracy, longer_wins.value)}: it is not shown to do better than that rule."
        )
    return found


def _by_length(shorter: Interval, longer: Interval) -> list[str]:
    word, worse, better = (
        ("longer", shorter, longer)
        if shorter.value < longer.value
        else ("shorter", longer, shorter)
    )
    if better.value - worse.value < FAR or worse.high is None or better.low is None:
        return []
    if worse.high >= better.low:
        return []
    return [
        f"The judge is right on {share(better)} of pairs whose {word} answer is right, and on "
        f"{share(worse)} of the others: part of its agreement is a liking for {word} answers."
    ]


def sentences(certificate: Certificate) -> list[str]:
    """The certificate in plain sentences, good news and bad; agreement never stands without the
    length rule and the ceiling beside it."""
    of = certificate.figures[ALL]
    names = sorted(set(certificate.figures) - {ALL})
    part = "" if certificate.part == "all" else f" ({certificate.part} part)"
    return [
        f"Judge: {' + '.join(certificate.judges)}. "
        f"Gold: {', '.join(sorted(certificate.sets))}{part}.",
        _agreement("The judge decides", of),
        *(
            _agreement(f"On {name} it decides", certificate.figures[name])
            for name in names
            if len(names) > 1
        ),
        _outcomes(of),
        *_chance(of),
        _orders(of),
        *_length(of),
        *_calibrated(of.calibration),
        _injected(certificate.injections),
        _cost(certificate.cost),
        _gate(certificate),
    ]


def _agreement(decides: str, of: SetFigures) -> str:
    if of.accuracy is None:
        return f"{decides} none of {counted(of.decided, 'decided gold pair')}: no label came."
    beside = []
    if of.longer_wins is not None:
        beside.append(f"“the longer answer wins” does on {percent(of.longer_wins.value)}")
    if of.ceiling is None:
        beside.append("how far people agree with each other is not known")
    else:
        beside.append(
            f"people agree with each other on {percent(of.ceiling.value)} ({of.ceiling.source})"
        )
    coin = "" if excludes(of.accuracy, 0.5) else " Its interval contains 50 %, a coin's."
    return (
        f"{decides} {share(of.accuracy, 0.5)} of {counted(of.accuracy.n, 'gold pair')} as gold "
        f"says; {', '.join(beside)}.{coin}"
    )


def _outcomes(of: SetFigures) -> str:
    ledger, lost = of.ledger, sum(of.ledger.unscored.values())
    level = f" Gold calls {of.level:,} of them level." if of.level else ""
    why = f" ({reasons(ledger.unscored)})" if lost else ""
    return (
        f"Of {counted(of.rows, 'pair')} on {counted(of.clusters, 'prompt')} "
        f"{ledger.a + ledger.b:,} got a winner, {ledger.tie:,} ended as ties and "
        f"{lost:,} stayed unscored{why}.{level}"
    )


def _chance(of: SetFigures) -> list[str]:
    found = [
        f"{name} {amount(interval)}"
        for name, interval in (("Cohen's kappa", of.kappa), ("Krippendorff's alpha", of.alpha))
        if interval is not None
    ]
    people = "" if of.alpha_people is None else f"; alpha among people {amount(of.alpha_people)}"
    if not found:
        return []
    return [f"Agreement beyond chance: {', '.join(found)} (0: none, 1: full){people}."]


def _orders(of: SetFigures) -> str:
    if of.order_consistency is None or of.same_position is None:
        return "No pair has a winner in both orders: how far the position decides is not known."
    rate = of.first_position_rate
    first = (
        "" if rate is None else f" {share(rate, 0.5)} of verdicts name the response shown first."
    )
    return (
        "With the order swapped the same response wins again in "
        f"{share(of.order_consistency, 0.5)} of pairs, and the same position in "
        f"{share(of.same_position, 0.5)}.{first}"
    )


def _length(of: SetFigures) -> list[str]:
    said = []
    if of.prefer_longer is not None:
        said.append(f"The longer response wins in {share(of.prefer_longer, 0.5)} of pairs.")
    by_length = [
        f"{share(interval, 0.5)} of pairs whose {word} response is the right one"
        for word, interval in (
            ("longer", of.accuracy_longer_right),
            ("shorter", of.accuracy_shorter_right),
        )
        if interval is not None
    ]
    if by_length:
        said.append(f"The judge is right on {' and on '.join(by_length)}.")
    return [" ".join(said)] if said else []


def _calibrated(of: CalibrationFigures | None) -> list[str]:
    if of is None:
        return []
    helps = (
        "of all pairs none is likeliest: all are right, or no more than chance"
        if of.temperature is None
        else f"all {counted(of.n, 'pair')}: {number(of.temperature)}"
    )
    scaled = (
        ""
        if of.scaled is None
        else f", {percent(of.scaled.ece, 1)} after temperature scaling (cross-fitted; {helps})"
    )
    return [
        "The judge's confidence is away from its accuracy by "
        f"{percent(of.raw.ece, 1)} on average (expected calibration error){scaled}, "
        f"{percent(of.clamped.ece, 1)} when kept within 40 % and 60 %."
    ]


def _injected(of: InjectionFigures | None) -> str:
    if of is None:
        return "Injected text was not tried."
    if of.success is None:
        return f"Injected text was tried {of.tried:,} times, but no try could show anything."
    by = "" if not of.examples else f", most of all by {', '.join(of.examples)}"
    control = "" if of.control is None else f" (text that asks for nothing: {share(of.control)})"
    return (
        f"Text injected into a response turned the verdict to it in {of.flipped:,} of "
        f"{counted(of.eligible, 'try', 'tries')}, {share(of.success)}{control}{by}."
    )


def _cost(cost: CertificateCost) -> str:
    clock = (
        "time not known (answers came from the store)"
        if cost.seconds_per_1000 is None
        else duration(cost.seconds_per_1000)
    )
    return (
        f"1,000 comparisons take {cost.prompt_tokens_per_1000:,.0f} prompt tokens, "
        f"{cost.completion_tokens_per_1000:,.0f} completion tokens, {clock}; {price(cost)}."
    )


def price(cost: CertificateCost) -> str:
    """`price unknown` or US dollars for 1,000 comparisons; an unknown price is never 0."""
    return "price unknown" if cost.usd_per_1000 is None else f"{number(cost.usd_per_1000)} USD"


def _gate(certificate: Certificate) -> str:
    if certificate.shortfalls:
        return f"The judge falls short of the gate: {'; '.join(certificate.shortfalls)}."
    if not certificate.gate:
        return "No gate was set: these figures forbid nothing."
    limits = ", ".join(f"{name} {_limit(x)}" for name, x in sorted(certificate.gate.items()))
    return f"The judge passes the gate ({limits})."
