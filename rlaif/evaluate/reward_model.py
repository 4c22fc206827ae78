"""What a reward model knows and what it does not: figures on held-out pairs, and its card."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rlaif.evaluate.calibration import FEW_PAIRS, CalibrationFigures, calibration
from rlaif.evaluate.heldout import (
    ScoredPair,
    Scores,
    as_labelled,
    longer_is_labelled,
    scored_pairs,
)
from rlaif.evaluate.intervals import Interval, clustered_mean, clustered_share
from rlaif.evaluate.wording import amount, counted, percent, share
from rlaif.types import Comparison, PreferenceGroup, Record

MARGINS = ((0.5, 0.75), (0.75, 0.9), (0.9, 1.0))
"""P(winner) of the labels, the upper end included."""
RATIOS = ((1.0, 1.25), (1.25, 2.0), (2.0, float("inf")))
"""Characters of the longer response by those of the shorter one, the lower end included."""
PEOPLE = (
    "People agree with each other on 73 to 77 % of such pairs (Lee et al. 2023), labelers of one "
    "team on 72.6 % (Ouyang et al. 2022): a reward model of human labels near that is no failure."
)


class Slice(Record):
    """Held-out pairs of one kind."""

    name: str
    accuracy: Interval
    longer_wins: Interval
    """The rule "the longer answer wins" on the same pairs."""


class RewardFigures(Record):
    """How a reward model orders pairs of prompts that it was not trained on."""

    accuracy: Interval
    longer_wins: Interval
    calibration: CalibrationFigures
    """Of sigmoid(score difference), as in Bradley and Terry's model."""
    by_certainty: tuple[Slice, ...]
    """By how sure the label is."""
    by_length: tuple[Slice, ...]
    """By how much longer one response is."""
    by_principle: tuple[Slice, ...]
    """Against the votes of each principle alone."""
    by_source: tuple[Slice, ...]
    """By the prompts' tags."""

    @property
    def temperature(self) -> float | None:
        """Calibrates differences; None where it is not found, or found on too few pairs."""
        few = self.calibration.n < FEW_PAIRS
        return None if few else self.calibration.temperature

    length_probe: Interval
    """Nats of score that a hundred further characters go with, within a prompt: the slope of score
    differences by length differences. Above 0 the model likes length."""


def reward_figures(
    groups: Sequence[PreferenceGroup],
    scores: Scores,
    votes: Mapping[tuple[str, int, int], Mapping[str, float]],
    seed: int,
) -> RewardFigures | None:
    """Of the test split; None without a labelled pair there.

    `scores`: raw scores, in nats. `votes`: (prompt id, index of first, index of second) ->
    principle id -> P(first preferred), where they are known.
    """
    pairs = scored_pairs(groups, scores, "test")
    if not pairs:
        return None

    def slices(found: Mapping[str, list[ScoredPair]]) -> tuple[Slice, ...]:
        return tuple(_slice(name, some, seed) for name, some in found.items() if some)

    whole = _slice("", pairs, seed)
    p_right_M = [
        1 / (1 + np.exp(-(p.margin if p.p_first > 0.5 else -p.margin)))
        for p in pairs
        if p.p_first != 0.5
    ]
    decided = [p.prompt.id for p in pairs if p.p_first != 0.5]
    found = calibration(p_right_M or [0.5], decided or [pairs[0].prompt.id], seed)
    assert found is not None, "there is a pair"
    by_tag: dict[str, list[ScoredPair]] = defaultdict(list)
    by_principle: dict[str, list[ScoredPair]] = defaultdict(list)
    for pair in pairs:
        for tag in pair.prompt.tags:
            by_tag[tag].append(pair)
        for principle, p_first in votes.get((pair.prompt.id, *pair.ids), {}).items():
            by_principle[principle].append(pair._replace(p_first=p_first))
    return RewardFigures(
        accuracy=whole.accuracy,
        longer_wins=whole.longer_wins,
        calibration=found,
        by_certainty=slices(
            {
                f"P(winner) over {percent(low)}, to {percent(high)}": [
                    p for p in pairs if low < max(p.p_first, 1 - p.p_first) <= high
                ]
                for low, high in MARGINS
            }
        ),
        by_length=slices(
            {
                _ratio_name(low, high): [p for p in pairs if low <= _ratio(p) < high]
                for low, high in RATIOS
            }
        ),
        by_principle=slices(dict(sorted(by_principle.items()))),
        by_source=slices(dict(sorted(by_tag.items()))),
        length_probe=_probe(pairs, seed),
    )


def votes_of(
    groups: Iterable[PreferenceGroup],
    comparisons: Iterable[Comparison],
    responses: Mapping[str, str],
) -> dict[tuple[str, int, int], Mapping[str, float]]:
    """The principles' votes on the pairs of groups. `responses`: response id -> text."""
    place = {
        (group.prompt.id, text): k for group in groups for k, text in enumerate(group.responses)
    }
    found: dict[tuple[str, int, int], Mapping[str, float]] = {}
    for comparison in comparisons:
        ks = [
            place.get((comparison.prompt_id, responses.get(name, "")))
            for name in (comparison.first, comparison.second)
        ]
        if ks[0] is not None and ks[1] is not None:
            found[comparison.prompt_id, ks[0], ks[1]] = comparison.votes
    return found


def _slice(name: str, pairs: Sequence[ScoredPair], seed: int) -> Slice:
    prompts = [p.prompt.id for p in pairs]
    return Slice(
        name=name,
        accuracy=clustered_share(as_labelled(pairs), prompts, seed),
        longer_wins=clustered_share(longer_is_labelled(pairs), prompts, seed),
    )


def _ratio(pair: ScoredPair) -> float:
    short, long = sorted((len(pair.first), len(pair.second)))
    return long / max(short, 1)


def _ratio_name(low: float, high: float) -> str:
    return f"{low:g} to {high:g} times as long" if np.isfinite(high) else f"over {low:g} times"


def _probe(pairs: Sequence[ScoredPair], seed: int) -> Interval:
    longer_M = np.array([len(p.first) - len(p.second) for p in pairs], dtype=np.float64) / 100
    margin_M = np.array([p.margin for p in pairs])
    squares = float((longer_M**2).mean())
    # A slope through the origin is a mean, so that whole prompts can be resampled; the spread of
    # the lengths is taken as given.
    slope_M = margin_M * longer_M / squares if squares else np.zeros_like(margin_M)
    return clustered_mean(slope_M, [p.prompt.id for p in pairs], seed)


def model_card(
    *,
    base: str,
    labeler: str,
    train_groups: int,
    members: int,
    figures: RewardFigures | None,
    scaled: bool,
) -> str:
    """The README of a reward model's folder, in Markdown. `scaled`: whether a reward.json lies
    there."""
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-classification",
        "tags: [reward-model, rlaif]",
        "---",
        "# Reward model",
        f"Trained from `{base}` on {counted(train_groups, 'group')} of responses labelled by "
        f"`{labeler}`. One score a conversation, in nats: sigmoid of a difference is the "
        "probability that the first response is preferred (Bradley-Terry).",
        "",
    ]
    if members > 1:
        lines += [
            f"An ensemble of {members} members; `model.safetensors` is the first of them alone.",
            "",
        ]
    if scaled:
        lines += [
            "`reward.json` has the mean and standard deviation of the scores on the start policy's "
            f"own responses{_temperature_words(figures)}",
            "",
        ]
    if figures is None:
        return "\n".join([*lines, "No labelled pair was held out, so nothing is known of it.", ""])
    scores = figures.calibration
    lines += [
        "## On prompts that it has not seen",
        f"It orders {share(figures.accuracy, 0.5)} of {counted(figures.accuracy.n, 'pair')} as "
        f'labelled; the rule "the longer answer wins" orders {share(figures.longer_wins, 0.5)}. '
        f"{PEOPLE}",
        "",
        f"A hundred further characters go with {amount(figures.length_probe)} nats.",
        "",
        _calibration_words(scores),
        "",
    ]
    for title, found in (
        ("By certainty of the label", figures.by_certainty),
        ("By length", figures.by_length),
        ("By principle", figures.by_principle),
        ("By source", figures.by_source),
    ):
        if found:
            lines += [
                f"### {title}",
                "| pairs | n | as labelled | longer wins |",
                "|---|---|---|---|",
            ]
            lines += [
                f"| {s.name} | {s.accuracy.n} | {share(s.accuracy, 0.5)} | "
                f"{share(s.longer_wins, 0.5)} |"
                for s in found
            ]
            lines.append("")
    if scores.n < FEW_PAIRS:
        return "\n".join(lines)
    bins = [b for b in scores.bins_raw if b.n]
    lines += ["### Reliability", "| confidence | n | right |", "|---|---|---|"]
    lines += [
        f"| {percent(b.confidence or 0)} | {b.n} | {percent(b.accuracy or 0)} |" for b in bins
    ]
    return "\n".join([*lines, ""])


def _temperature_words(figures: RewardFigures | None) -> str:
    """What goes on from the mean and standard deviation in `reward.json`."""
    none = ". No temperature calibrates differences: "
    if figures is None:
        return f"{none}no pair was held out."
    n = counted(figures.calibration.n, "held-out pair")
    if figures.calibration.n < FEW_PAIRS:
        return f"{none}{n} {'is' if figures.calibration.n == 1 else 'are'} too few."
    if figures.temperature is None:
        return f"{none}all of {n} are ordered as labelled, or no more of them than by chance."
    return f", and the temperature {figures.temperature:.3g}, of {n}, that calibrates differences."


def _calibration_words(of: CalibrationFigures) -> str:
    n = counted(of.n, "pair")
    if of.n < FEW_PAIRS:
        return f"Of its calibration nothing is told: too few pairs ({of.n:,})."
    scaled = (
        f", {of.scaled.ece:.3f} after scaling by a temperature of other prompts"
        if of.scaled
        else ""
    )
    return (
        f"Expected calibration error on {n} {of.raw.ece:.3f}{scaled}; log loss "
        f"{of.raw.log_loss:.3f} nats, {np.log(2):.3f} for a coin."
    )
