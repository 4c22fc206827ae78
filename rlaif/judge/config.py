"""The judge as a config: how one judge is asked, and how several make one label."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rlaif.judge.read import Labels
from rlaif.models.pool import ModelConfig
from rlaif.types import Record

Mode = Literal["pairwise", "critique", "reasoning", "structured", "votes", "pointwise", "score"]
Trigger = Literal["margin", "orders", "principles", "unscored"]

PAIR_LABELS: Labels = ("A", "B")
POINT_LABELS: Labels = ("yes", "no")
SINGLE: frozenset[Mode] = frozenset({"pointwise", "score"})
"""Modes that ask about each response by itself: there is no order to swap."""
NEED_LOGPROBS = SINGLE
"""Modes that nothing but log-probabilities can answer: a `yes` or a `7` in text has no odds."""
TEMPLATE: dict[Mode, str] = {
    "pairwise": "compare",
    "critique": "compare_critiqued",
    "reasoning": "compare_reasoned",
    "structured": "compare_structured",
    "votes": "compare_voted",
    "pointwise": "pointwise",
    "score": "score",
}


class AskConfig(ModelConfig):
    """One judge, and how it is asked and read."""

    mode: Mode = "pairwise"
    """How the judge is asked. pairwise: a one-token verdict; critique: a critique of each response
    first, then the verdict; reasoning: a rationale first, then the verdict; structured: the
    verdict as JSON, kept to the menu by the provider; votes: several written-out verdicts, and the
    share that each response got; pointwise: yes or no on each response by itself, and the two
    log-odds compared; score: the distribution over a scale for each response, compared."""
    template: str | None = None
    """Another template (path or name) for the verdict; the mode says which variables it gets."""
    labels: Labels | None = None
    """The two words that the judge chooses between; none: A and B, or yes and no in pointwise."""
    logprobs: bool = True
    """Read verdicts from log-probabilities where the provider gives them; false: from text."""
    both_orders: bool = True
    """Ask every pair in both orders and average. One order halves the cost and leaves the judge's
    position bias in the labels; every row says which was done."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature of critiques, rationales and text verdicts; several votes need one."""
    critique_tokens: int = Field(default=160, ge=1)
    """Most tokens of a critique or rationale."""
    text_verdict_tokens: int = Field(default=16, ge=2)
    """Most tokens of a verdict that is read from text, where a judge gives no log-probabilities
    (with them it is always one token). A judge that likes to talk needs more room; the last verdict
    counts, and a cut one is unscored."""
    menu_tokens: int = Field(default=64, ge=2)
    """Mode structured: most tokens of the verdict; a forced tool call needs more than its text."""
    votes: int = Field(default=5, ge=1)
    """Mode votes: how many verdicts are sampled for one judgment. Less than half of them readable:
    unscored."""
    vote_tokens: int = Field(default=256, ge=2)
    """Mode votes: most tokens of one written-out verdict."""
    score_max: int = Field(default=9, ge=2, le=20)
    """Mode score: the scale runs from 1 to this. Every number on it must begin with a token of its
    own (10 mostly begins as 1 does), and servers tell of 20 tokens at most."""
    clamp: float | None = Field(default=None, gt=0, le=0.5)
    """Keeps every judgment's probability within 0.5 +- this; 0.1 is the 40 to 60 % that served best
    after a chain of thought in Bai et al. 2022, section 4.1. None: as the judge gave it."""
    min_label_mass: float = Field(default=0.1, ge=0, le=1)
    """A verdict whose labels hold less probability than this together is unscored."""

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        if self.mode == "votes" and self.temperature == 0 and self.votes > 1:
            raise ValueError(
                "mode votes at temperature 0 counts one verdict several times; set temperature, "
                "for example to 1"
            )
        if self.labels and self.mode == "score":
            raise ValueError("mode score has a scale (score_max) and no labels; leave labels out")
        if self.labels and self.labels[0].casefold() == self.labels[1].casefold():
            raise ValueError(f"both labels are {self.labels[0]!r}")
        if self.labels and not all(label.isalnum() for label in self.labels):
            raise ValueError("labels are single words of letters and digits")
        return self

    @property
    def offered(self) -> Labels:
        """The labels on the judge's menu."""
        return self.labels or (POINT_LABELS if self.mode == "pointwise" else PAIR_LABELS)


class CascadeConfig(AskConfig):
    """The strong judge of a cascade: asked again only where the first judges leave doubt."""

    margin: float = Field(default=0.1, ge=0, le=0.5)
    """Comparisons with |p - 0.5| up to this are asked again."""
    when: tuple[Trigger, ...] = ("margin", "orders", "principles", "unscored")
    """What makes doubt. margin: see there; orders: a principle's two orders name different
    winners; principles: two principles do; unscored: there is no label yet."""


class Gate(Record):
    """What the judge must show on pairs whose better response people have named, before it labels
    anything of the run."""

    gold: tuple[str, ...] = ()
    """Gold files, names of ours, or hub:ORG/NAME; the judge is certified on them first."""
    certificate: str | None = None
    """A certificate.json that `rlaif certify` has written for exactly this way of asking; used
    instead of gold."""
    limit: int | None = Field(default=None, ge=1)
    """Most pairs of each gold file."""
    part: Literal["all", "dev", "test"] = "all"
    """Half of the gold pairs, by prompt: choose the way of asking on dev, certify it on test."""
    injections: int = Field(default=1, ge=0)
    """How many gold pairs each injection is tried on; 0: none."""
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    """Smallest share of gold pairs decided as gold says."""
    max_position_bias: float | None = Field(default=None, ge=0, le=1)
    """Largest share of pairs on which the same position wins in both orders."""
    max_unscored: float | None = Field(default=None, ge=0, le=1)
    """Largest share of gold pairs without a label."""

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if bool(self.gold) == bool(self.certificate):
            raise ValueError("a gate needs gold files or a certificate, and not both")
        unread = sorted({"limit", "part", "injections"} & self.model_fields_set)
        if (
            self.certificate
            and unread
            and any(self.__dict__[name] != Gate.model_fields[name].default for name in unread)
        ):
            raise ValueError(f"{unread[0]} chooses from gold; a certificate is taken as it is")
        return self


class JudgeConfig(AskConfig):
    """The judge, what it judges by, and how its answers become labels."""

    constitution: str
    """Constitution file, or the name of one of ours: hhh, harmless, human-rights,
    support, concise, code-review."""
    principles: Literal["all", "sample", "tiers"] = "all"
    """Which principles a comparison is asked under. sample: one, drawn by weight from the run's
    seed, as in Bai et al. 2022; tiers: those of tier 1, and of the next tier only where these
    leave it indifferent (see tie_margin)."""
    comparisons: Literal["all", "random", "adjacent", "adaptive"] = "all"
    """Which of a prompt's C(K, 2) pairs are asked about. adjacent: (1, 2), (2, 3), …; adaptive: one
    after the other, always where the ranking so far is least certain."""
    comparisons_per_prompt: int | None = Field(default=None, ge=1)
    """How many pairs of a prompt random and adaptive ask about."""
    panel: tuple[AskConfig, ...] = ()
    """Further judges; each is asked about every comparison, and the label is the mean of those
    that gave one. Take them from other model families: they err in other ways."""
    cascade: CascadeConfig | None = None
    """A strong judge that has the last word where the others leave doubt."""
    gate: Gate | None = None
    """What the judge must show on gold pairs before it labels."""
    tie_margin: float = Field(default=0.01, ge=0, lt=0.5)
    """Comparisons with |p - 0.5| up to this are ties."""
    min_voting_weight: float = Field(default=0.5, gt=0, le=1)
    """A comparison is scored when principles with at least this share of the weight voted, and on a
    panel at least this share of the judges."""
    max_unscored: float = Field(default=0.1, ge=0, le=1)
    """Exit code 3 when a larger share of comparisons ends unscored; what was answered is kept."""

    @model_validator(mode="after")
    def _says_how_many(self) -> Self:
        counted = self.comparisons in ("random", "adaptive")
        if counted and self.comparisons_per_prompt is None:
            raise ValueError(
                f"comparisons: {self.comparisons} needs comparisons_per_prompt, how many pairs"
            )
        in_both = all(judge.both_orders and judge.mode not in SINGLE for _, judge in self.judges())
        if self.gate is not None and self.gate.max_position_bias is not None and not in_both:
            raise ValueError(
                "gate.max_position_bias can only be measured where every judge compares pairs in "
                "both orders; leave it out"
            )
        if not counted and self.comparisons_per_prompt is not None:
            raise ValueError(
                f"comparisons_per_prompt goes with random and adaptive, not {self.comparisons}"
            )
        return self

    @property
    def first(self) -> AskConfig:
        """The first judge by itself."""
        return AskConfig.model_validate(self.model_dump(include=set(AskConfig.model_fields)))

    def of(self, model: str) -> Self:
        """The same, of another model alone. What belongs to a provider (price, batch, limits,
        server, concurrency) is at its default: that of one says nothing of another."""
        provider = {name: f.get_default() for name, f in ModelConfig.model_fields.items()}
        alone = {"model": model, "panel": (), "cascade": None, "gate": None}
        return self.model_copy(update={**provider, **alone})

    def in_both_orders(self) -> Self:
        """The same, with every judge asked in both orders."""
        both = {"both_orders": True}
        return self.model_copy(
            update={
                **both,
                "panel": tuple(member.model_copy(update=both) for member in self.panel),
                "cascade": self.cascade and self.cascade.model_copy(update=both),
            }
        )

    def judges(self) -> list[tuple[str, AskConfig]]:
        """Every judge with the field that names its model, in the order asked."""
        found = [("judge.model", self.first)]
        found += [(f"judge.panel[{i}].model", member) for i, member in enumerate(self.panel)]
        if self.cascade is not None:
            found.append(("judge.cascade.model", self.cascade))
        return found
