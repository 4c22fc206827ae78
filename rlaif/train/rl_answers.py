"""What RL asks of a batch of answers: their rewards, and the figures that are traced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlaif.errors import SetupError, TrainingDiverged
from rlaif.train.collate import Batch
from rlaif.train.ensemble import load_members
from rlaif.train.groups import EncodedGroup, encode
from rlaif.train.loading import device, in_precision, load_tokenizer, pad_id, quiet
from rlaif.train.rl_settings import Measure, RLSettings, draws, measure
from rlaif.train.scale import Array, How, RewardScale, combined, scale_of
from rlaif.train.scorers import RewardScorer, response_log_probs, score_groups
from rlaif.types import Prompt, Record


class BudgetSpent(Exception):
    """Ends a training before a step."""


class Answers(Record):
    """N answers to prompts, whose numbers are in `prompts_N`."""

    prompts_N: list[int]
    tokens_N: list[list[int]]
    """As drawn: an end token is among them, padding is not."""
    texts_N: list[str]


class Grader:
    """A reward model, of one member or of several, whose scores are normalised."""

    def __init__(self, name: str, how: How = "mean") -> None:
        self._name, self._how = name, how
        self._tokenizer = load_tokenizer(name)
        self.members = [RewardScorer(m) for m in load_members(name, pad_id(self._tokenizer))]
        self.scale: RewardScale
        """Of each member; `normalise` sets it."""
        self._zero, self._unit = 0.0, 1.0

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """The members' normalised scores made one, and that normalised, of each answer. Raises
        TrainingDiverged for one that is not finite."""
        scores_N = combined(self.scale.normalised(self._raw(prompts, texts)), self._how)
        normalised: list[float] = ((scores_N - self._zero) / self._unit).tolist()
        return normalised

    def normalise(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> None:
        """Sets these answers' scores to mean 0 and variance 1. Raises SetupError if a member gives
        all of them the same."""
        raw_NM = self._raw(prompts, texts)
        # Rounding leaves equal scores a spread that is no preference.
        if (raw_NM.std(axis=0) <= 1e-6 * np.abs(raw_NM).max(axis=0)).any():
            raise SetupError(
                "gives every answer of the start policy the same reward",
                file=self._name,
                fix="train a reward model that tells answers apart",
            )
        self.scale = scale_of(raw_NM)
        scores_N = combined(self.scale.normalised(raw_NM), self._how)
        self._zero, self._unit = float(scores_N.mean()), float(scores_N.std())

    def _raw(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Array:
        groups = []
        for prompt, text in zip(prompts, texts, strict=True):
            prompt_ids, (response_ids,) = encode(self._tokenizer, prompt, [text], [True])
            if not response_ids:
                # The head reads the conversation's last token, whoever said it.
                prompt_ids, response_ids = prompt_ids[:-1], prompt_ids[-1:]
            groups.append(EncodedGroup(prompt_ids, [response_ids], (), (0.0,)))
        raw_NM = np.concatenate(
            [
                _scores(member, groups, pad_id(self._tokenizer)).reshape(len(groups), -1)
                for member in self.members
            ],
            axis=1,
        )
        if not np.isfinite(raw_NM).all():
            raise TrainingDiverged(
                f"{self._name} gave a reward that is infinite or NaN; nothing was saved"
            )
        return raw_NM


class AnswerReader:
    """The reward that TRL asks for; on the way it measures each step's answers."""

    __name__ = "reward_model"

    def __init__(
        self,
        prompts: Sequence[Prompt],
        proxy: Grader,
        check: Grader | None,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: GenerationConfig,
        settings: RLSettings,
    ) -> None:
        self.prompts = prompts
        self.policy = policy
        self.tokenizer = tokenizer
        self.reference: PreTrainedModel | None = None
        """None: the policy has not been trained yet, and is its own reference."""
        self.on_trace: Callable[[Measure], None]
        self.trace: list[Measure] = []
        self._prompt_ids = [opening_ids(tokenizer, prompt) for prompt in prompts]
        self._proxy, self._check = proxy, check
        self._config = config
        self._settings = settings

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        number: Sequence[int],
        **told: Any,
    ) -> list[float]:
        """The normalised rewards of a step's answers. Raises BudgetSpent before a step that the
        KL budget does not allow."""
        texts = [message["content"] for (message,) in completions]
        answers = Answers(
            prompts_N=list(number), tokens_N=[list(ids) for ids in completion_ids], texts_N=texts
        )
        rewards_N = self._rewards(answers)
        measured = self._measured(len(self.trace) + 1, answers, rewards_N)
        self.note(measured)
        if measured.kl > self._settings.kl_budget:
            raise BudgetSpent
        return rewards_N

    def note(self, measured: Measure) -> None:
        """Adds a step's figures to the trace."""
        self.trace.append(measured)
        self.on_trace(measured)

    def normalise(self, answers: Answers) -> None:
        """See `Grader.normalise`."""
        for grader in (self._proxy, self._check):
            if grader is not None:
                grader.normalise(self._asked(answers), answers.texts_N)

    def read(self, step: int, answers: Answers) -> Measure:
        """Figures of the policy's answers."""
        return self._measured(step, answers, self._rewards(answers))

    def draw(self) -> Answers:
        """Some `normalise_on` answers of the policy, as many to each of the first prompts."""
        settings = self._settings
        asked, each = draws(len(self.prompts), settings)
        numbers = [n for n in range(asked) for _ in range(each)]
        rows = settings.batch_prompts * settings.samples
        tokens_N = []
        for i in range(0, len(numbers), rows):
            tokens_N += self._generate([self._prompt_ids[n] for n in numbers[i : i + rows]])
        texts_N = self.tokenizer.batch_decode(tokens_N, skip_special_tokens=True)
        return Answers(prompts_N=numbers, tokens_N=tokens_N, texts_N=texts_N)

    def _generate(self, prompt_ids: Sequence[list[int]]) -> list[list[int]]:
        padded = self.tokenizer.pad(
            {"input_ids": list(prompt_ids)}, padding_side="left", return_tensors="pt"
        ).to(device())
        policy: Any = self.policy
        with torch.no_grad(), quiet():
            output_NT = policy.generate(**padded, generation_config=self._config)
        drawn_NT = output_NT[:, padded["input_ids"].shape[1] :].tolist()
        ends = self._ends
        return [
            ids[: next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))]
            for ids in drawn_NT
        ]

    @property
    def _ends(self) -> set[int]:
        ends: Any = self._config.eos_token_id
        return set(ends)

    def _asked(self, answers: Answers) -> list[Prompt]:
        return [self.prompts[n] for n in answers.prompts_N]

    def _rewards(self, answers: Answers) -> list[float]:
        return self._proxy(self._asked(answers), answers.texts_N)

    def _measured(self, step: int, answers: Answers, rewards_N: Sequence[float]) -> Measure:
        encoded = [
            (self._prompt_ids[n], tokens)
            for n, tokens in zip(answers.prompts_N, answers.tokens_N, strict=True)
        ]
        kl_N = [0.0] * len(encoded)
        if self.reference is not None:
            with in_precision(self._settings.dtype):
                kl_N = log_ratios(
                    self.policy,
                    self.reference,
                    encoded,
                    self._settings.temperature,
                    pad_id(self.tokenizer),
                )
        held_out_N = None
        if self._check is not None:
            held_out_N = self._check(self._asked(answers), answers.texts_N)
        ends = self._ends
        truncated_N = [tokens[-1] not in ends for tokens in answers.tokens_N]
        return measure(
            step, answers.prompts_N, answers.tokens_N, truncated_N, kl_N, rewards_N, held_out_N
        )


def log_ratios(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    encoded: Sequence[tuple[list[int], list[int]]],
    temperature: float,
    pad_token_id: int,
) -> list[float]:
    """log pi(y|x) - log pi_ref(y|x) of each (x, y), tokens as they were drawn, in nats.

    Its mean over a policy's own samples is an unbiased estimate of the KL of whole responses, in
    nats a response (Ahmadian et al. 2024, eq. 2, penalise the same).
    """
    groups = [EncodedGroup(x, [y], (), (0.0,)) for x, y in encoded]

    def log_probs(model: PreTrainedModel) -> Array:
        def score(batch: Batch) -> torch.Tensor:
            return response_log_probs(model, batch, temperature)

        return _scores(score, groups, pad_token_id)

    ratios: list[float] = (log_probs(policy) - log_probs(reference)).reshape(-1).tolist()
    return ratios


def _scores(
    score: Callable[[Batch], torch.Tensor], groups: Sequence[EncodedGroup], pad_token_id: int
) -> Array:
    """Scores of groups of one response, (N,) or (N, M)."""
    scores_N = score_groups(
        score, groups, pad_token_id, packed=False, device=device(), on_group=lambda *_: None
    )
    return torch.cat(scores_N).double().numpy()


def opening_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of a prompt with the answer's turn opened, as TRL makes them."""
    encoded: Any = tokenizer.apply_chat_template(
        [message.model_dump() for message in prompt.messages],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )
    ids: list[int] = encoded["input_ids"]
    return ids
