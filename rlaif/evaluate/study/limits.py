"""What each kind of comparison in a study shows and does not."""

from __future__ import annotations

from rlaif.evaluate.comparison_words import difference_words, points
from rlaif.evaluate.equivalence import ALPHA
from rlaif.evaluate.study.arm_records import Difference
from rlaif.evaluate.study.document import NONE, Section, Table, needed_cell
from rlaif.evaluate.study.family import comparisons
from rlaif.evaluate.study.records import StudyReport
from rlaif.evaluate.study.summary import PRIMARY
from rlaif.evaluate.study.words import MODELS, verdict_words
from rlaif.evaluate.wording import counted, number, p_text, percent


def limits(report: StudyReport) -> Section:
    """Every comparison of the study with what it could have found, and what none of them says."""
    found = comparisons(report)
    return Section(
        "What this does and does not show",
        [
            *(
                f"{PRIMARY} {_measure(d)}{difference_words(d.a, d.b, d.estimate, report.margin)}"
                for d in found
                if d.primary
            ),
            *_scope(report),
        ],
        [
            Table(
                "All comparisons",
                (
                    "",
                    "points",
                    "p",
                    "p by Holm",
                    "verdict",
                    "80 % power from",
                    "prompts needed",
                    "seeds needed",
                ),
                [
                    (
                        f"{PRIMARY + ' ' if d.primary else ''}{_measure(d)}{_sides(d)}",
                        points(d.interval).removesuffix(" points"),
                        NONE if d.p is None else p_text(d.p),
                        NONE if d.p_holm is None else p_text(d.p_holm),
                        verdict_words(d),
                        _detectable(d),
                        needed_cell(d.prompts_needed),
                        needed_cell(d.seeds_needed),
                    )
                    for d in found
                ],
                "Needed: to show with 80 % chance that arms which are alike are so, the other of "
                f"the two as it is; {NONE}: no number is enough without more of the other.",
            )
        ],
        note=_multiplicity(found),
    )


def _scope(report: StudyReport) -> list[str]:
    units = f"{counted(report.held_out.prompts, 'prompt')}, {counted(report.seeds, 'seed')} an arm"
    said = [
        f"Accuracies are over {units}; all figures are of this study's data, models and "
        "constitution and say nothing of others.",
        "Held-out accuracy is how arms order pairs, not whose policy is better.",
        f"Win rates are what {report.compared_by} prefers, which people need not.",
        "Reward model against DPO: a difference may come from the settings of either as well as "
        "from the method. Best of n against the policy is reward model against policy and nothing "
        "else only at one KL.",
        "KL is how far a policy has moved, not whether for the better; arms of unlike KL were "
        "compared at unlike distance.",
        "Refusals are told by phrases on a few prompts: they tell arms apart, not how safe one is; "
        "a refusal in other words is not seen.",
    ]
    if report.curve is not None:
        said.append(
            "The exchange rate is of reward models' held-out accuracy within the sizes that were "
            "tried: of policies, of more labels and of another judge it says nothing."
        )
    return said


def _multiplicity(found: list[Difference]) -> str:
    first = [d for d in found if d.primary and d.p is not None]
    others = [d for d in found if not d.primary and d.p is not None]
    return (
        f"{counted(len(first) + len(others), 'comparison')} with an interval, in two families: "
        f"{counted(len(first), 'primary one', 'primary ones')} and "
        f"{counted(len(others), 'other', 'others')}. Of one comparison in twenty without a "
        "difference a 95 % interval excludes zero. Holm's (1979) adjustment of p keeps the chance "
        f"of any such mistake in a family at {percent(ALPHA)}, however the comparisons depend on "
        "each other. Intervals, power and “alike” are of each comparison by itself; so are win "
        "rates at equal length and the test of systematic disagreement, which are in neither "
        "family. What is found among the others is a lead for another study."
    )


def _detectable(found: Difference) -> str:
    """The smallest difference that would be found with 80 % chance."""
    if found.detectable is None:
        return NONE
    most = found.estimate.bounds[1]
    return "none" if found.detectable > most else f"{number(100 * found.detectable)} points"


def _measure(found: Difference) -> str:
    """`reward model: ` or `DPO: ` of an accuracy between arms, `human: ` of one within an arm."""
    within = found.measure.rpartition(", arm ")
    if within[1]:
        return f"{within[2]}: "
    return next((f"{name}: " for name in MODELS.values() if f" {name} " in found.measure), "")


def _sides(found: Difference) -> str:
    return found.a if found.b == "one half" else f"{found.a} − {found.b}"
