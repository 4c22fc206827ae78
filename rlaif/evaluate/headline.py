"""What a run shows, in plain sentences computed from its figures, and what to be warned of."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.evaluate import revisions, rl
from rlaif.evaluate.intervals import Interval, excludes
from rlaif.evaluate.schema import (
    CertificateSection,
    ComparisonSection,
    DPOSection,
    JudgeSection,
    LabelsSection,
    PairsSection,
    Report,
    RewardModelSection,
    SFTSection,
)
from rlaif.evaluate.wording import amount, counted, number, percent, reasons, share

FEW_PROMPTS = 10
"""Under this many clusters a percentile bootstrap is too narrow to be believed."""
MANY_LOST = 0.10
"""Share of unscored comparisons, or of cut responses, that a reader must be warned of."""
LEAN = 0.30
"""Distance of the first-position rate from one half that a reader must be warned of."""
LOW_MASS = 0.50
"""Mean label mass under which the judge mostly wanted to say something else."""


def headline(report: Report) -> list[str]:
    """The run in plain sentences, good news and bad; a part that is missing is said to be."""
    return [
        *(revisions.sentences(report.revisions) if report.revisions else []),
        *(sft_sentences(report.sft) if report.sft else []),
        *_labels(report.labels),
        *_certificate(report.certificate),
        *_judge(report.judge),
        *_pairs(report.pairs),
        *_model("The reward model", "The reward model", report.reward_model),
        *_model("The DPO policy", "DPO's implicit reward", report.dpo),
        *(rl.sentences(report.rl) if report.rl else []),
        *_comparison(report.comparison, report.dpo),
    ]


def sft_sentences(section: SFTSection) -> list[str]:
    """Fine-tuning in plain sentences."""
    trained = f"The policy was fine-tuned on {counted(section.examples, 'revised answer')}"
    before, after, change = (
        section.held_out_before,
        section.held_out_after,
        section.held_out_change,
    )
    if before is None or after is None or change is None:
        return [f"{trained}; none was held out."]
    verdict = _against(change, 0.0, "zero", "", "no difference is shown")
    return [
        f"{trained}: those of held-out prompts cost {number(before.value)} nats a token before and "
        f"{number(after.value)} after, a change of {amount(change)}; {verdict}."
    ]


def find_warnings(report: Report) -> tuple[str, ...]:
    """What the figures themselves warn of; the caller puts them into `Report.warnings`."""
    found = []
    judge, labels, run = report.judge, report.labels, report.run
    if judge is not None:
        found += _trust(judge, report.certificate)
        if report.certificate is not None:
            found += [f"Certificate: {warning}" for warning in report.certificate.warnings]
        first = judge.first_position_rate
        if first is not None and abs(first.value - 0.5) >= LEAN and excludes(first, 0.5):
            side, rate = (
                ("first", first.value) if first.value > 0.5 else ("second", 1 - first.value)
            )
            found.append(
                f"The judge names the response shown {side} in {percent(rate)} of its judgments: "
                "its verdicts follow the position more than the content."
            )
        same = judge.order_consistency
        if same is not None and (same.low is None or same.low <= 0.5):
            found.append(
                f"The judge picks the same winner in both orders in {share(same, 0.5)} of cases; "
                "a coin would in 50 %."
            )
        if judge.label_mass_mean is not None and judge.label_mass_mean < LOW_MASS:
            found.append(
                f"The labels offered to the judge held {percent(judge.label_mass_mean)} of its "
                "probability on average: mostly it wanted to answer something else."
            )
    if report.revisions is not None:
        found += revisions.warnings(report.revisions)
    if report.rl is not None:
        found += rl.warnings(report.rl)
    if labels is not None and labels.requested:
        lost = sum(labels.unscored.values())
        if lost / labels.requested > MANY_LOST:
            found.append(
                f"{percent(lost / labels.requested)} of the comparisons stayed unscored "
                f"({reasons(labels.unscored)}): what is left may not stand for all."
            )
    if run.truncated_share is not None and run.truncated_share > MANY_LOST:
        found.append(
            f"The token limit cut {percent(run.truncated_share)} of the responses: the judge "
            "compared unfinished answers."
        )
    models = [s for s in (report.reward_model, report.dpo) if s is not None]
    compared = report.comparison
    return (
        *found,
        *_few("held-out figures rest", [s.held_out_accuracy for s in models]),
        *_few(
            "comparison of the policies rests",
            [] if compared is None else [compared.win_rate, compared.length_difference],
        ),
    )


def _trust(judge: JudgeSection, certificate: CertificateSection | None) -> list[str]:
    """What is to be said of a judge that has passed no gate."""
    if judge.certified:
        return []
    if certificate is None:
        return [
            "The judge is not certified: nothing yet shows that its verdicts match people's. "
            "Read every figure as agreement with this judge, not as quality."
        ]
    if certificate.accuracy is None:
        return [
            "The judge is not certified: it gave no verdict on the gold pairs that it was shown."
        ]
    measured = (
        f"The judge is not certified: it decides {share(certificate.accuracy, 0.5)} of "
        f"{certificate.rows:,} gold pairs as gold says"
    )
    if not excludes(certificate.accuracy, 0.5):
        return [f"{measured}, which is not shown to be better than a coin."]
    return [f"{measured}, and no smallest agreement was demanded (judge.gate.min_agreement)."]


def _few(figures_rest: str, intervals: Sequence[Interval | None]) -> list[str]:
    """The warning that intervals over so few prompts need."""
    fewest = min((i.clusters for i in intervals if i is not None), default=FEW_PROMPTS)
    if fewest >= FEW_PROMPTS:
        return []
    return [
        f"The {figures_rest} on {counted(fewest, 'prompt')}: intervals from so few are too narrow."
    ]


def _against(interval: Interval, x: float, name: str, shown: str, not_shown: str) -> str:
    """What the interval says about `x`, the value that means "no effect"."""
    if interval.low is None:
        return f"there is no interval, so {not_shown}"
    if excludes(interval, x):
        return f"the interval excludes {name}{': ' if shown else ''}{shown}"
    return f"the interval contains {name}: {not_shown}"


def _labels(labels: LabelsSection | None) -> list[str]:
    if labels is None:
        return ["The judge has not been asked yet."]
    lost = sum(labels.unscored.values())
    why = f" ({reasons(labels.unscored)})" if lost else ""
    return [
        f"Of {counted(labels.requested, 'comparison')} asked for, {labels.a + labels.b:,} have a "
        f"winner, {labels.tie:,} ended as ties and {lost:,} stayed unscored{why}."
    ]


def _certificate(certificate: CertificateSection | None) -> list[str]:
    if certificate is None or certificate.accuracy is None:
        return []
    rule = certificate.longer_wins
    beside = [f"“the longer answer wins” does on {percent(rule.value)}"] if rule else []
    if certificate.ceiling is not None:
        beside.append(f"people agree with each other on {percent(certificate.ceiling)}")
    return [
        f"Asked in this way, the judge decides {share(certificate.accuracy, 0.5)} of "
        f"{certificate.rows:,} gold pairs ({', '.join(certificate.sets)}) as gold says"
        f"{'; ' if beside else ''}{', '.join(beside)}."
    ]


def _judge(judge: JudgeSection | None) -> list[str]:
    if judge is None:
        return []
    said = []
    if judge.order_consistency is not None:
        said.append(
            "The judge picks the same winner when the order is swapped in "
            f"{share(judge.order_consistency, 0.5)} of cases (a coin: 50 %)."
        )
    first = judge.first_position_rate
    if first is not None:
        side = "first" if first.value > 0.5 else "second"
        leaning = _against(
            first, 0.5, "50 %", f"it leans to the {side} position", "no lean to a position is shown"
        )
        said.append(
            f"It names the response shown first in {share(first, 0.5)} of judgments; {leaning}."
        )
    if judge.disagreement is not None:
        said.append(
            f"The judges' probabilities for one comparison lie {amount(judge.disagreement)} apart."
        )
    if judge.escalated:
        said.append(
            f"{counted(sum(judge.escalated.values()), 'comparison')} went to the strong judge "
            f"({reasons(judge.escalated)})."
        )
    return said


def _pairs(pairs: PairsSection | None) -> list[str]:
    if pairs is None:
        return ["The preference dataset has not been written yet."]
    said = [
        f"The preference dataset holds {counted(pairs.train, 'pair')} to train on and "
        f"{pairs.test:,} held out, from {counted(pairs.groups, 'prompt')}."
    ]
    longer = pairs.longer_chosen
    if longer is not None:
        side = "longer" if longer.value > 0.5 else "shorter"
        link = _against(
            longer,
            0.5,
            "50 %",
            f"the labels go with {side} answers",
            "no link with length is shown",
        )
        said.append(
            f"The chosen response is the longer one in {share(longer, 0.5)} of pairs; {link}."
        )
    return said


def _model(model: str, scorer: str, section: RewardModelSection | None) -> list[str]:
    if section is None:
        return [f"{model} is not trained on the present labels."]
    accuracy = section.held_out_accuracy
    if accuracy is None:
        return [
            f"{model} was trained on {counted(section.groups, 'prompt')} and has not been tested "
            "on held-out pairs yet."
        ]
    longer = section.longer_wins
    rule = f"; “the longer answer wins” orders {percent(longer.value)}" if longer else ""
    shown = "" if accuracy.value > 0.5 else "it orders them the wrong way round"
    chance = _against(accuracy, 0.5, "50 %", shown, "no difference from chance is shown")
    ordered = share(accuracy, 0.5)
    said = f"{scorer} orders {ordered} of held-out pairs as the judge does{rule}; {chance}."
    if longer is not None and accuracy.value > 0.5 and excludes(accuracy, 0.5):
        word, best = max(
            ("longer", longer.value), ("shorter", 1 - longer.value), key=lambda r: r[1]
        )
        if accuracy.low is not None and best >= accuracy.low:
            level = "does better" if excludes(accuracy, best) else "does about as well"
            said += (
                f" Length alone (“the {word} answer wins”: {percent(best)}) {level}, so these "
                "pairs do not show that more than length was learned."
            )
    return [said]


def _comparison(comparison: ComparisonSection | None, dpo: DPOSection | None) -> list[str]:
    said = []
    if dpo is not None and dpo.kl is not None:
        said.append(
            f"The DPO policy is {amount(dpo.kl)} nats a response away from the start policy "
            f"(β = {dpo.beta:g})."
        )
    if comparison is None:
        return [*said, "The DPO policy has not been compared with the start policy yet."]
    if comparison.rm_dpo_agreement is not None:
        said.append(
            "Reward model and DPO's implicit reward order "
            f"{share(comparison.rm_dpo_agreement, 0.5)} of held-out pairs the same way."
        )
    rate = comparison.win_rate
    if rate is not None:
        better = "DPO" if rate.value > 0.5 else "start"
        verdict = _against(
            rate, 0.5, "50 %", f"the {better} policy is preferred", "no difference is shown"
        )
        said.append(
            f"Under the same judge the DPO policy wins {share(rate, 0.5)} against the start "
            f"policy, a tie counting half; {verdict}."
        )
    elif comparison.unscored:
        said.append("No answer of the DPO policy got a verdict against the start policy's.")
    change = comparison.length_difference
    if change is not None:
        way = "shorter" if change.value < 0 else "longer"
        by, _, ends = amount(change).partition(" ")
        verdict = _against(change, 0.0, "zero", "", "no difference is shown")
        said.append(
            f"The DPO policy answers {by.lstrip('−')} {comparison.length_unit} {way} "
            f"than the start policy {ends}: {verdict}."
        )
    return said
