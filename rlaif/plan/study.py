"""What a study would take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from rlaif.arms import START, ArmName, asked_about, folder_of, paired, part_size
from rlaif.config import differences, dump_config
from rlaif.constitution import load_constitution
from rlaif.evaluate.study.records import HumanSection
from rlaif.files import each_jsonl, read_jsonl
from rlaif.judge.aggregate import Pair
from rlaif.judge.ask import Tiers
from rlaif.judge.design import fixed_design
from rlaif.plan.calls import Calls, Text, tails_of
from rlaif.plan.figures import Figure, exactly, known
from rlaif.plan.history import History
from rlaif.plan.training import PARTS, most_of, seconds_of, size_of, steps_of, weights_at
from rlaif.plan.voices import Voice, start_of, trained, voice_of
from rlaif.plan.workload import Workload
from rlaif.recipe import StudyConfig
from rlaif.recipe.study import STAGES, check_config
from rlaif.stages import certify, human
from rlaif.stages._answering import by_vllm, with_tokens
from rlaif.stages.arms import Asked, Unit, asked_of, units_of
from rlaif.stages.head_to_head import Answers, Picks, matches_in, matches_of
from rlaif.stages.train_dpo import DPOConfig
from rlaif.stages.train_rm import RewardModelConfig
from rlaif.train.shapes import read_model
from rlaif.types import Comparison, PreferenceGroup, Prompt, Response, Sampling
from rlaif.workspace import STAMP, RunFolder
from rlaif.yamlfile import YamlFile

ANOTHER = (
    "arms, head-to-head: what is there was made of another config or data and is counted as made "
    "anew, all of it; what the change leaves alone is not, so this is the most (`rlaif run` takes "
    "the folder with --reconfigure)"
)
UNDECIDED = (
    "arms, head-to-head: the judge decides every pair; what it leaves undecided is neither trained "
    "on nor answered, so this is the most"
)
UNANSWERED = (
    "head-to-head: the policies' answers all differ and have text, and every policy's KL is "
    "known; this is the most"
)


def of_study(config: StudyConfig, out: Path, history: History, beside: Sequence[Path]) -> Workload:
    """What a study in `out` would do. Raises SetupError for what it would be refused for."""
    check_config(config)
    evaluating = config.evaluating().in_both_orders()
    if config.evaluation.judge is not None:
        # For a mistake to be told by its own field: what follows knows `judge.model` alone.
        voice_of(evaluating.first, "evaluation.judge")
    path, groups, section = human.prepare(config.human, config.seed)
    constitution, _ = load_constitution(config.judge.constitution)
    tiers = Tiers(config.judge, constitution, config.seed)
    of_evaluating = Tiers(evaluating, constitution, config.seed)
    history.know([*tails_of(config.judge, tiers), *tails_of(evaluating, of_evaluating)])
    calls = Calls(history)
    if config.judge.gate is not None:
        calls.judge("certify", config.judge, tiers, certify.pairs_of(config.judge.gate), {})
    only = asked_about(groups)
    responses = [(g.prompt, human.responses_of(g, path)) for g in groups]
    pairs = [p for p in fixed_design("all", responses, None, config.seed) if p.id in only]
    calls.judge("judge", config.judge, tiers, pairs, {})
    same = _is_of(config, section, out)
    labelled = _labelled(groups, calls, out) if same else None
    decided = groups if labelled is None else labelled
    asked = asked_of(config.answers, decided, config.seed)
    # What hangs on the labels is made of labels that a call to come may change.
    stands = labelled is not None
    policies = _Policies(config, out, stands=stands)
    matches, texts = policies.ask(calls, asked, {g.prompt.id: g.prompt for g in groups})
    calls.judge("head-to-head", evaluating, of_evaluating, matches, texts)
    assumed = () if stands else (UNDECIDED,)
    if not same and (out / "arms").is_dir():
        assumed = (ANOTHER, *assumed)
    train = [g for g in decided if g.split == "train"]
    return Workload(
        tuple(s for s in STAGES if s != "certify" or config.judge.gate is not None),
        calls,
        {"arms": trainings(config, len(train), out, beside, stands=stands)},
        _memory(config, train),
        assumed if policies.answered else (*assumed, UNANSWERED),
    )


def _is_of(config: StudyConfig, section: HumanSection, out: Path) -> bool:
    """Whether what is in the folder was made of this config and this data."""
    path, before = out / "config.yaml", RunFolder(out).part("human")
    if not path.is_file() or before is None or tuple(before["sha256"]) != section.sha256:
        return False
    now = yaml.safe_load(dump_config(config))
    return not list(differences(YamlFile(path).value, now))


def _labelled(
    groups: Sequence[PreferenceGroup], calls: Calls, out: Path
) -> list[PreferenceGroup] | None:
    """The groups with those pairs that the judge has decided as well; None before it has."""
    folder = RunFolder(out)
    every = [c for c in calls.found.values() if c.stage == "judge" and c.chance == "sure"]
    if folder.part("labels") is None or not all(call.stored for call in every):
        return None
    return paired(groups, read_jsonl(folder.comparisons, Comparison))[0]


class _Policies:
    """The arms' policies and their start, as they are asked and compared."""

    def __init__(self, config: StudyConfig, out: Path, *, stands: bool) -> None:
        self._config = config
        self._folder = out / "arms"
        base = config.policy.model if config.dpo.base is None else config.dpo.base
        self._vllm = by_vllm(base, config.answers.engine)
        self._policy, self._start = start_of(config.policy, config.dpo.base, out, vllm=self._vllm)
        units = units_of(config.arms, config.seeds, ())
        self._identities = {
            unit.name: _answered_as(self._folder / unit.name) if stands else None for unit in units
        }
        self.answered = None not in self._identities.values()
        """Whether every policy has answered, and every reward model has picked."""

    def ask(
        self, calls: Calls, asked: Asked, prompts: Mapping[str, Prompt]
    ) -> tuple[list[Pair], dict[str, Text]]:
        """The calls of stage arms. Returns the pairs of stage head-to-head, and the answers in them
        that stand in for others."""
        config = self._config.answers
        texts: dict[str, Text] = {}
        sampling, told = asked.sampling, with_tokens(asked.sampling)
        start = self._answers(START, self._start, config.of_start, sampling, calls, asked, texts)
        # Not among the answers that the policies' own are held against, where there are others.
        picked = {prompt_id: answers[-1:] for prompt_id, answers in start.items()}
        pairs = []
        for seed in range(self._config.seeds):
            own: dict[ArmName, Answers] = {}
            for arm in self._config.arms:
                name = folder_of(arm, seed)
                voice = self._voice(name)
                own[arm] = self._answers(name, voice, config.samples, told, calls, asked, texts)
            if self.answered:
                matches = matches_in(self._folder, self._config.arms, seed, prompts)
            else:
                picks = dict.fromkeys(own, Picks(picked, config.of_start))
                matches = matches_of(start, own, picks, prompts)
            pairs += [match.pair for match in matches]
        return pairs, {} if self.answered else texts

    def _answers(
        self,
        name: str,
        voice: Voice,
        k: int,
        sampling: Sampling,
        calls: Calls,
        asked: Asked,
        texts: dict[str, Text],
    ) -> dict[str, list[Response]]:
        """As `rlaif.stages._answering.answer` names them."""
        found: dict[str, list[Response]] = {}
        for prompt, answers in calls.sample("arms", voice, asked.held_out, k, sampling):
            for response, text in answers:
                r = response.model_copy(update={"id": f"{name}:{response.id}"})
                found.setdefault(prompt.id, []).append(r)
                texts[r.id] = text
        calls.sample("arms", voice, asked.refusing, 1, asked.sampling)
        return found

    def _voice(self, name: str) -> Voice:
        """An arm's policy: itself where it has answered, for its weights are mostly gone then."""
        weights = self._folder / name / "dpo" / "weights"
        voice = trained(self._policy, weights, vllm=self._vllm, name=name)
        others = [identity for identity in self._identities.values() if identity is not None]
        identity = self._identities[name] or voice.asked.identity
        return voice._replace(
            # One name for all: what is told of them is told once.
            model=f"{voice.model.partition('/')[0]}/{self._folder}/*/dpo/weights",
            asked=voice.asked._replace(identity=identity),
            like=(identity, *others, *self._policy.like),
        )


def _answered_as(folder: Path) -> str | None:
    """Identity of a finished arm's policy; None before it has answered, and its reward model
    picked."""
    if not all((folder / kind / STAMP).is_file() for kind in ("reward_model", "dpo")):
        return None
    for name in ("answers.jsonl", "refusing.jsonl"):
        for response in each_jsonl(folder / "dpo" / name, Response):
            return response.model
    return None


def trainings(
    config: StudyConfig, groups: int, out: Path, beside: Sequence[Path], *, stands: bool
) -> tuple[Figure | None, Figure | None]:
    """Seconds and bytes of the trainings that are not made yet, from so many train groups; of all,
    unless what is made `stands`. Weights that are not kept go once they have answered, so that one
    model's are there at a time."""
    identity, folder = weights_at(config.dpo.base or config.policy.model)
    units = units_of(config.arms, config.seeds, config.learning_curve)
    left = [
        (unit, kind)
        for unit in units
        for kind in unit.kinds
        if not (stands and _is_made(unit, kind, out))
    ]
    seconds: list[Figure | None] = []
    for stage, section in _sections(config).items():
        sizes = [part_size(groups, unit.share) for unit, kind in left if kind == PARTS[stage]]
        if sizes:
            steps = sum(steps_of(size, section) for size in sizes)
            seconds.append(seconds_of(stage, identity, steps, (out, *beside)))
    kept = len(left) if config.keep_weights else min(len(left), 1)
    size = size_of(folder)
    return known(seconds), None if size is None else size.times(exactly(kept))


def _is_made(unit: Unit, kind: str, out: Path) -> bool:
    return (out / "arms" / unit.name / kind / STAMP).is_file()


def _sections(config: StudyConfig) -> dict[str, RewardModelConfig | DPOConfig]:
    """By the stage of a run that trains so."""
    return {"train-rm": config.reward_model, "train-dpo": config.dpo}


def _memory(config: StudyConfig, train: Sequence[PreferenceGroup]) -> dict[str, float]:
    """Of the training that takes the most."""
    _, folder = weights_at(config.dpo.base or config.policy.model)
    model = None if folder is None else read_model(folder)
    if model is None or not train:
        return {}
    k = max(len(g.responses) for g in train)
    most = [most_of(model, section, k) for section in _sections(config).values()]
    told = [found for found in most if found is not None]
    return {"arms": max(told)} if len(told) == len(most) else {}
