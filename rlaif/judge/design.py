"""Which of a prompt's C(K, 2) pairs to ask about: every pair costs the judge's tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from rlaif.errors import SetupError
from rlaif.files import each_jsonl
from rlaif.judge.aggregate import Pair
from rlaif.types import Prompt, Response

Floats = npt.NDArray[np.float64]
Group = tuple[Prompt, Sequence[Response]]
"""A prompt and its K responses."""
At = tuple[int, int]
"""A pair by the places of its two responses in the group, the smaller one first."""
Scored = tuple[int, int, float | None]
"""Places i and j and P(response i is preferred); None where the judge gave none."""

DIGITS = 9
"""Certainties that agree to so many decimals are equal: which of them is larger is rounding."""
STEPS = 100
"""Newton's method takes under ten with prior_sd 1."""
WIDEST = 100.0
"""Under a prior wider than this the sum of the scores is too loose for double precision."""


def groups_in_order(
    prompts: Iterable[Prompt], responses: Iterable[Response], *, unanswered: bool
) -> Iterator[Group]:
    """Each prompt with its responses, of prompts and responses that come in one order; a prompt
    without a response only if `unanswered`. Raises ValueError, at the end, for a response that
    comes in another."""
    rest = iter(responses)
    response = next(rest, None)
    for prompt in prompts:
        group: list[Response] = []
        while response is not None and response.prompt_id == prompt.id:
            group.append(response)
            response = next(rest, None)
        if group or unanswered:
            yield prompt, group
    if response is not None:
        raise ValueError(f"{response.id!r} does not come where its prompt does")


def sampled(prompts: Path, responses: Path, *, unanswered: bool = False) -> Iterator[Group]:
    """As `groups_in_order`, of the files that the sample stage writes. Raises SetupError."""
    try:
        yield from groups_in_order(
            each_jsonl(prompts, Prompt), each_jsonl(responses, Response), unanswered=unanswered
        )
    except ValueError as e:
        raise SetupError(
            str(e), file=responses, fix="the file was changed by hand; run `rlaif sample` again"
        ) from e


def groups_of(
    prompts: Mapping[str, Prompt], responses: Iterable[Response]
) -> list[tuple[Prompt, list[Response]]]:
    """Each prompt with its responses; prompts and responses in the order of `responses`."""
    by_prompt: dict[str, list[Response]] = {}
    for response in responses:
        by_prompt.setdefault(response.prompt_id, []).append(response)
    return [(prompts[i], group) for i, group in by_prompt.items()]


def fixed_design(
    kind: Literal["all", "random", "adjacent"],
    groups: Sequence[Group],
    m: int | None,
    seed: int,
) -> list[Pair]:
    """Pairs that can be named before the judge has said anything.

    all: every pair; m is None. random: m pairs a prompt, see `_random`. adjacent: (0, 1), (1, 2)
    and so on, K - 1 of them or the first m; with m = K or more the pair (0, K - 1) closes the
    circle. A prompt that has fewer pairs gives those it has. Pairs stand in the order of `groups`,
    and within a prompt in the order of `all`.

    Raises ValueError for m below 1, m with all, random without m.
    """
    if m is not None and (m < 1 or kind == "all"):
        raise ValueError(f"{m} comparisons a prompt do not go with the design {kind}")
    found: list[Pair] = []
    for prompt, responses in groups:
        K = len(responses)
        if kind == "all":
            chosen = list(combinations(range(K), 2))
        elif kind == "adjacent":
            chosen = [(i, i + 1) for i in range(K - 1)][:m]
            if m is not None and m >= K > 2:
                chosen.append((0, K - 1))
        elif m is None:
            raise ValueError("a random design needs the number of comparisons a prompt")
        else:
            chosen = _random(prompt, responses, m, seed)
        found += [Pair(prompt, responses[i], responses[j]) for i, j in sorted(chosen)]
    return found


def _random(prompt: Prompt, responses: Sequence[Response], m: int, seed: int) -> list[At]:
    """m pairs, first those of a random tree over all K responses, so that from m = K - 1 on every
    response is ranked against every other, directly or through others.

    The order is that of the sha256 of seed, prompt id and the two response ids: it depends neither
    on other prompts nor on the order of the file, and a larger m keeps the pairs of a smaller one,
    so that what was asked before is found in the call store. The tree is the one that Kruskal's
    algorithm finds in this order; every pair is equally likely to be in it.
    """

    def rank(at: At) -> bytes:
        ids = sorted(responses[i].id for i in at)
        return hashlib.sha256(":".join([str(seed), prompt.id, *ids]).encode()).digest()

    part_K = list(range(len(responses)))
    tree: list[At] = []
    rest: list[At] = []
    for i, j in sorted(combinations(range(len(responses)), 2), key=rank):
        joins = part_K[i] != part_K[j]
        (tree if joins else rest).append((i, j))
        part_K = [part_K[i] if part == part_K[j] else part for part in part_K]
    return (tree + rest)[:m]


class Posterior(NamedTuple):
    """A normal distribution over the scores of K responses, in log-odds."""

    mean_K: Floats
    cov_KK: Floats


def posterior(K: int, comparisons: Iterable[Scored], prior_sd: float = 1.0) -> Posterior:
    """What comparisons say of K scores, and how surely.

    Bradley-Terry: P(i preferred to j) = sigmoid(s_i - s_j), where a probability p counts as p of a
    win for i and 1 - p for j. Scores have independent priors N(0, prior_sd^2), in log-odds.
    Laplace's approximation: mean at the mode, covariance the inverse of the Hessian of the negative
    log posterior there. Comparisons without a probability teach nothing.

    Source: Bradley & Terry (1952) for the model; Chu & Ghahramani (2005), Preference learning with
    Gaussian processes, for a Gaussian prior with Laplace's approximation on pairwise preferences
    (theirs is a probit with a kernel). Raises ValueError for prior_sd outside (0, 100],
    indices that do not name two of K responses, p outside 0 to 1.
    """
    if not 0.0 < prior_sd <= WIDEST:
        raise ValueError(f"prior_sd must be above 0 and at most {WIDEST:g}, not {prior_sd}")
    scored = [(i, j, p) for i, j, p in comparisons if p is not None]
    X_CK = np.zeros((len(scored), K))
    for c, (i, j, p) in enumerate(scored):
        _check(K, i, j, p)
        X_CK[c, i], X_CK[c, j] = 1.0, -1.0
    p_C = np.array([p for _, _, p in scored], dtype=np.float64)
    prior_KK = np.eye(K) / prior_sd**2
    mean_K = np.zeros(K)
    for _ in range(STEPS):
        q_C = 0.5 * (1.0 + np.tanh(X_CK @ mean_K / 2.0))
        gradient_K = X_CK.T @ (q_C - p_C) + prior_KK @ mean_K
        hessian_KK = (X_CK.T * (q_C * (1.0 - q_C))) @ X_CK + prior_KK
        step_K = np.linalg.solve(hessian_KK, gradient_K)
        if np.abs(step_K).max(initial=0.0) < 1e-10:
            return Posterior(mean_K, np.asarray(np.linalg.inv(hessian_KK), dtype=np.float64))
        mean_K = mean_K - step_K
    raise ArithmeticError(f"no mode found in {STEPS} steps with prior_sd {prior_sd}")


def implied_order(K: int, comparisons: Iterable[Scored], prior_sd: float = 1.0) -> Floats:
    """Posterior mean of each of K scores, higher is better; see `posterior`."""
    return posterior(K, comparisons, prior_sd).mean_K


def _check(K: int, i: int, j: int, p: float | None) -> None:
    if i == j or not (0 <= i < K and 0 <= j < K):
        raise ValueError(f"({i}, {j}) does not name two of {K} responses")
    if p is not None and not 0.0 <= p <= 1.0:
        raise ValueError(f"{p} is no probability")


class Adaptive:
    """One prompt's pairs, each chosen by what was said of those before it.

    Next comes the pair whose order is least certain: the largest entropy of
    P(s_i > s_j) = Phi(E(s_i - s_j) / sd(s_i - s_j)); of equals the one with the larger sd, then the
    first in the order of `all`. No pair is asked twice. The same answers lead to the same
    questions, so a run that is started again finds them in the call store.

    Source: Pfeiffer et al. (2012), Adaptive polling for information aggregation, and Glickman &
    Jensen (2005), Adaptive paired comparison design, choose the pair with the largest expected gain
    of information about all scores; the entropy of one order is the simpler rule of uncertainty
    sampling (Lewis & Gale 1994).
    """

    def __init__(self, K: int, prior_sd: float = 1.0) -> None:
        """`prior_sd` in log-odds, see `posterior`."""
        self._K = K
        self._prior_sd = prior_sd
        self._unasked = list(combinations(range(K), 2))
        self._said: list[Scored] = []

    def next(self) -> At | None:
        """The pair to ask about, smaller index first; None when all were asked. The same until
        `add` is told of it."""
        if not self._unasked:
            return None
        mean_K, cov_KK = self.posterior()

        def certainty(at: At) -> tuple[float, float, At]:
            i, j = at
            sd = float(np.sqrt(cov_KK[i, i] + cov_KK[j, j] - 2.0 * cov_KK[i, j]))
            # The entropy falls as this grows.
            z = abs(float(mean_K[i] - mean_K[j])) / sd
            return round(z, DIGITS), -round(sd, DIGITS), at

        return min(self._unasked, key=certainty)

    def add(self, i: int, j: int, p_first: float | None) -> None:
        """What the judge said of a pair: P(response i preferred). None, unscored: it is not asked
        again and teaches nothing. Raises ValueError for a pair that was added before."""
        _check(self._K, i, j, p_first)
        at = (min(i, j), max(i, j))
        if at not in self._unasked:
            raise ValueError(f"the pair {at} was asked before")
        self._unasked.remove(at)
        self._said.append((i, j, p_first))

    def posterior(self) -> Posterior:
        """The scores as they stand; see the function of this name."""
        return posterior(self._K, self._said, self._prior_sd)
