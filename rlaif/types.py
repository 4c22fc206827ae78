"""The data on its way: Prompt -> Response -> Judgment -> Comparison -> PreferenceGroup.

Every type here is written to disk, so every one is frozen and refuses unknown fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)


class Record(BaseModel):
    """Base of everything that is written to disk."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Scalar = StrictBool | StrictInt | StrictFloat | StrictStr
"""A plain value in a prompt's metadata. Strict: 1 stays a number and true a truth value."""
Probability = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Role = Literal["system", "user", "assistant"]
Split = Literal["train", "test"]
Outcome = Literal["A", "B", "tie", "unscored"]
Order = Literal["forward", "swapped", "none"]


class Message(Record):
    role: Role
    content: str


class SharedMessage(Message):
    """A message whose beginning other calls have, too. In the store and in files it is a message
    like any other: where a cache may be cut changes no answer."""

    shared: int = Field(gt=0, exclude=True)
    """So many characters at its beginning are shared."""


class Prompt(Record):
    """A conversation that ends with a user's turn."""

    id: str
    messages: tuple[Message, ...] = Field(min_length=1)
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Scalar] = {}
    """What else is known of it; principles may depend on it (`applies_when`)."""

    @model_validator(mode="after")
    def _ends_with_user(self) -> Self:
        if self.messages[-1].role != "user":
            raise ValueError("the last message of a prompt must be the user's")
        return self


class Response(Record):
    """One sampled answer of the policy to a prompt."""

    id: str
    """`<prompt id>/<index>`; unique in a run."""
    prompt_id: str
    text: str
    finish_reason: str
    """`stop`, or `length` where the token limit cut the answer."""
    model: str
    """Identity of the policy that gave it."""
    call: str
    """Key of the stored call that holds it."""

    @property
    def ended(self) -> bool:
        """Whether the answer ended by itself rather than at the token limit."""
        return self.finish_reason != "length"


class Revision(Record):
    """One round of critique and revision (Bai et al. 2022, section 3.1)."""

    principle_id: str
    critique: str
    text: str
    """The response rewritten."""
    finish_reason: str
    """Of the revision; `length` where the token limit cut it."""
    calls: tuple[str, ...]
    """Keys of the calls of critique and revision."""


class RevisionChain(Record):
    """A response and its revisions, each made of the one before."""

    prompt_id: str
    original: Response
    revisions: tuple[Revision, ...]
    reason: str = ""
    """Why the chain ended before its last round; empty if it did not."""


class Judgment(Record):
    """One verdict: in one order, under one principle."""

    comparison_id: str
    judge: str
    """Identity of the model that was asked."""
    principle_id: str
    order: Order
    """`none` where each response was asked about by itself (pointwise)."""
    p_first: Probability | None
    """P(the comparison's *first* response is preferred), already turned back if the order was
    swapped; None if unscored."""
    label_mass: Probability | None
    """Probability that the offered labels held together before renormalising; None for verdicts
    read from text."""
    scores: tuple[float, float] | None = None
    """Expected score of each response, first and second, on the scale that the judge was given;
    None where it gave none."""
    reason: str = ""
    """Why it is unscored; empty if it is scored."""
    calls: tuple[str, ...]
    """Keys of the calls behind it, in the order asked: critiques or rationale, then the verdict."""

    @model_validator(mode="after")
    def _scored_or_reasoned(self) -> Self:
        if (self.p_first is None) != bool(self.reason):
            raise ValueError("a judgment has either a probability or a reason for having none")
        return self


class Comparison(Record):
    """Two responses to one prompt, and the judge's verdict over all orders and principles."""

    id: str
    prompt_id: str
    first: str
    """Response id; the forward order shows it as A."""
    second: str
    judge: str
    """Identity of the judge that decided; `panel` where several were averaged."""
    outcome: Outcome
    p_first: Probability | None
    """What the principles' votes (and the judges') add up to; None if unscored."""
    votes: Mapping[str, Probability]
    """Principle id -> P(first preferred) averaged over the orders; scored principles only."""
    orders: int = Field(ge=1, le=2)
    """In how many orders each principle was asked; 1 for responses judged one by one."""
    by_judge: Mapping[str, Probability | None] = {}
    """Judge -> its own P(first preferred), where more than one was asked; None: it gave none."""
    disagreement: Probability | None = None
    """Largest less smallest probability of the judges that scored it; None under two of them."""
    escalated: str = ""
    """Why a cascade asked its strong judge; empty where it did not."""
    reason: str = ""

    @model_validator(mode="after")
    def _scored_or_reasoned(self) -> Self:
        if (self.outcome == "unscored") != (self.p_first is None) or (
            self.outcome == "unscored"
        ) != bool(self.reason):
            raise ValueError("a comparison is unscored with a reason, or scored with a probability")
        return self


class WeightedComparison(Record):
    """A labelled pair inside a group: indices into the group's responses."""

    first: int = Field(ge=0)
    second: int = Field(ge=0)
    p_first: Probability
    weight: float = Field(default=1.0, gt=0.0)


class PreferenceGroup(Record):
    """A prompt, its K responses and the comparisons between them: the unit that training reads.

    A human pair is a group with K = 2 and one comparison of p_first = 1.
    """

    prompt: Prompt
    responses: tuple[str, ...] = Field(min_length=2)
    comparisons: tuple[WeightedComparison, ...] = Field(min_length=1)
    ended: tuple[bool, ...] = ()
    """Whether each response ended by itself, rather than at the token limit; empty: all did."""
    split: Split
    labeler: str
    """Who gave the labels: the judge's identity, or `human`."""

    @model_validator(mode="after")
    def _indices_exist(self) -> Self:
        if not self.ended:
            # Frozen for everyone else; here the record is still being made.
            object.__setattr__(self, "ended", (True,) * len(self.responses))
        if len(self.ended) != len(self.responses):
            raise ValueError(f"{len(self.ended)} end flags for {len(self.responses)} responses")
        for c in self.comparisons:
            if c.first == c.second or max(c.first, c.second) >= len(self.responses):
                raise ValueError(
                    f"comparison ({c.first}, {c.second}) does not name two of the "
                    f"{len(self.responses)} responses"
                )
        return self


class Sampling(Record):
    """What shapes the answer; part of a call's key."""

    max_tokens: int = Field(gt=0)
    temperature: float = Field(ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    n: int = Field(default=1, ge=1)
    """Answers asked for in one call."""
    seed: int | None = None
    """Tells otherwise equal calls apart; sent to providers that take one."""
    top_logprobs: int = Field(default=0, ge=0, le=20)
    """How many alternatives of the *first* answered token to return; 0: none."""
    token_ids: bool = False
    """Whether to return the tokens of each answer: text does not say which ones were drawn."""


class ChatRequest(Record):
    """One call, content-addressed: no transport settings, no key, no address."""

    model: str
    """Identity of the model (see `ChatModel.identity`)."""
    messages: tuple[Message, ...]
    sampling: Sampling
    repeat: int = 0
    """Asks the same again for another independent answer."""
    menu: tuple[str, ...] = ()
    """Constrains the answer to the JSON object `{"verdict": X}` with X one of these, by the
    provider's own means; empty: free text."""


class TokenLogprob(Record):
    token: str
    logprob: float = Field(allow_inf_nan=False)


class Choice(Record):
    text: str
    finish_reason: str
    first_token: tuple[TokenLogprob, ...] = ()
    """Alternatives of the first token, likeliest first; empty where the server gives none."""
    token_ids: tuple[int, ...] = ()
    """The tokens as they were drawn, the end token among them; empty where nobody asked."""


class ChatReply(Record):
    choices: tuple[Choice, ...] = Field(min_length=1)
    prompt_tokens: int
    """Of the whole prompt, those from a cache among them."""
    completion_tokens: int
    cached_tokens: int = 0
    """Of the prompt's tokens those that the provider read from its cache."""
    cache_write_tokens: int = 0
    """Of the prompt's tokens those that the provider billed for writing into its cache."""
    batched: bool = False
    """Whether it came through the provider's batch API, which bills half."""
