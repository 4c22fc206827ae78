"""Which calls each stage of a run would make."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from rlaif.constitution import load_constitution
from rlaif.datasets import load_prompts
from rlaif.files import read_jsonl
from rlaif.judge.aggregate import Pair
from rlaif.judge.ask import EXAMPLE, Tiers
from rlaif.judge.config import JudgeConfig
from rlaif.judge.design import fixed_design
from rlaif.judge.forms import Form
from rlaif.plan.calls import Calls, Text, common_tail, response, tails_of
from rlaif.plan.history import History
from rlaif.plan.training import memory, training
from rlaif.plan.voices import Voice, start_of, trained, voice_of
from rlaif.plan.workload import Workload
from rlaif.preferences import split_by_prompt
from rlaif.recipe import SFT, RunConfig, at_once
from rlaif.revise import revision_id
from rlaif.stages import certify, revise, train_rl
from rlaif.stages._answering import by_vllm, with_tokens
from rlaif.stages.train_rl import RLConfig
from rlaif.train.rl_settings import draws
from rlaif.types import Prompt, Response

Answered = tuple[Prompt, list[tuple[Response, Text]]]


def of_run(config: RunConfig, out: Path, history: History, beside: Sequence[Path]) -> Workload:
    """What a run in `out` would do. Raises SetupError for what it would be refused for."""
    calls = _calls(config, out, history)
    stages = config.stages()
    trainings = {stage: training(stage, config, out, beside) for stage in stages}
    most = {stage: memory(stage, config, out) for stage in stages}
    return Workload(
        stages,
        calls,
        {stage: found for stage, found in trainings.items() if found is not None},
        {stage: found for stage, found in most.items() if found is not None},
        at_once=config.policy.model != config.judge.model and at_once(config),
        piloted=("revise",) if config.start == "sft" else ("revise", "sample", "judge"),
    )


def _calls(config: RunConfig, out: Path, history: History) -> Calls:
    """Every call of a run in `out`. Raises SetupError for what a run would be refused for."""
    prompts = load_prompts(config.sample.prompts, config.sample.limit)
    constitution, _ = load_constitution(config.judge.constitution)
    tiers = Tiers(config.judge, constitution, config.seed)
    policy = voice_of(config.policy, "policy.model")
    prepared = None
    tails = set(tails_of(config.judge, tiers))
    if config.revise is not None:
        prepared = revise.prepare(config.revise, config.policy, config.judge, prompts, config.seed)
        tails |= set(_revise_tails(prepared))
    history.know(tails)
    calls = Calls(history)
    if config.revise is not None and prepared is not None:
        _revise(calls, config, config.revise, prepared, policy, tiers)
    start = policy
    if config.start == "sft":
        start = trained(policy, out / "sft", vllm=_by_vllm(config))
    sampling = config.sample.sampling(config.seed)
    groups = calls.sample("sample", start, prompts, config.sample.k, sampling)
    if config.judge.gate is not None:
        # Asked for before the judge labels: what both need is paid for there.
        gold = certify.pairs_of(config.judge.gate)
        calls.judge("certify", config.judge, tiers, gold, {})
    texts = {r.id: text for _, answers in groups for r, text in answers}
    pairs = _design(calls, config.judge, tiers, groups, config.seed)
    calls.judge("judge", config.judge, tiers, pairs, texts)
    _compare(calls, config, out, prompts, policy, tiers)
    if config.rl is not None and config.rl.judge is not None:
        _rl(calls, config, config.rl, out, groups, tiers)
    return calls


def _rl(
    calls: Calls,
    config: RunConfig,
    rl: RLConfig,
    out: Path,
    groups: Sequence[Answered],
    tiers: Tiers,
) -> None:
    """The trained policy's answers beside the start's; before there are any, they are taken to be
    like those that were sampled."""
    judge = config.judge.of(str(rl.judge)).in_both_orders()
    # For a mistake to be told by its own field: what follows knows `judge.model` alone.
    voice_of(judge.first, "rl.judge")
    there = out / "rl" / train_rl.ANSWERS
    if there.is_file():
        pairs = train_rl.judged_pairs(read_jsonl(there, train_rl.Answered), rl.judged)
        calls.judge("train-rl", judge, tiers, pairs, {})
        return
    splits = split_by_prompt((p.id for p, _ in groups), config.pairs.test_fraction, config.seed)
    training = [(p, answers) for p, answers in groups if splits[p.id] == "train" and answers]
    asked, each = draws(len(training), rl) if training else (0, 0)
    answers = []
    texts: dict[str, Text] = {}
    for prompt, sampled in training[:asked]:
        for n in range(each):
            drawn = [sampled[(n + k) % len(sampled)][1] for k in range(2)]
            texts |= {
                f"{name}:{prompt.id}/{n}": t for name, t in zip(("rl", "start"), drawn, strict=True)
            }
            one, other = (text.text for text in drawn)
            answers.append(train_rl.Answered(prompt=prompt, trained=one, start=other))
    calls.judge("train-rl", judge, tiers, train_rl.judged_pairs(answers, rl.judged), texts)


def _revise_tails(prepared: revise.Prepared) -> list[str]:
    principles = prepared.constitution.principles
    prompt = EXAMPLE.prompt
    both = [
        (
            prepared.wording.critique("", prompt, text, principle.worded(prompt)),
            prepared.wording.revision("", prompt, text, principle.worded(prompt), text),
        )
        for principle, text in ((principles[0], "One."), (principles[-1], "Two!"))
    ]
    return [common_tail(one, two) for one, two in zip(*both, strict=True)]


def _revise(
    calls: Calls,
    config: RunConfig,
    section: revise.ReviseConfig,
    prepared: revise.Prepared,
    policy: Voice,
    tiers: Tiers,
) -> None:
    voice = voice_of(prepared.reviser, prepared.reviser_field)
    model, wording = voice.asked.identity, prepared.wording
    sampling = config.sample.sampling(config.seed)
    originals = calls.sample("revise", policy, prepared.prompts, 1, sampling)
    choose = revise.chooser(prepared.constitution, prepared.fixed, config.seed)
    sites = len(prepared.prompts)
    pairs: list[Pair] = []
    texts: dict[str, Text] = {}
    for prompt, answers in originals:
        chain = [text for _, text in answers]
        for number in range(1, section.rounds + 1):
            principle = choose(prompt, number)
            if principle is None or not chain:
                break
            worded = wording.worded(principle, prompt)
            last = chain[-1]
            request = wording.critique(model, prompt, last.text, worded)
            (critique,) = calls.add("revise", voice, request, [last], sites=sites)
            request = wording.revision(model, prompt, last.text, worded, critique.text)
            chain += calls.add("revise", voice, request, [last, critique], sites=sites)
        responses = [
            response(revision_id(prompt.id, n), prompt, text) for n, text in enumerate(chain)
        ]
        texts.update(zip((r.id for r in responses), chain, strict=True))
        if len(responses) > 1:
            pairs += [Pair(prompt, one, two) for one, two in combinations(responses, 2)]
    if section.judged:
        calls.judge("revise", config.judge.in_both_orders(), tiers, pairs, texts)


def _design(
    calls: Calls,
    judge: JudgeConfig,
    tiers: Tiers,
    groups: Sequence[Answered],
    seed: int,
) -> list[Pair]:
    plain = [(prompt, [r for r, _ in answers]) for prompt, answers in groups]
    kind, m = judge.comparisons, judge.comparisons_per_prompt
    if kind != "adaptive":
        return fixed_design(kind, plain, m, seed)
    # It follows the verdicts; that it is so many pairs is known, and which were asked about.
    form = Form(judge.first, voice_of(judge.first, "judge.model").asked)
    found: list[Pair] = []
    for group in plain:
        pairs = fixed_design("all", [group], None, seed)
        pairs.sort(key=lambda pair: not calls.asked_already(form, tiers, pair))
        found += pairs[:m]
    return found


def _compare(
    calls: Calls,
    config: RunConfig,
    out: Path,
    prompts: Sequence[Prompt],
    policy: Voice,
    tiers: Tiers,
) -> None:
    """The trained policy against the one it started from."""
    splits = split_by_prompt((p.id for p in prompts), config.pairs.test_fraction, config.seed)
    held_out = [p for p in prompts if splits[p.id] == "test"]
    base, vllm = config.dpo.base, _by_vllm(config)
    if base == SFT or (base is None and config.start == "sft"):
        before = trained(policy, out / "sft", vllm=vllm)
    else:
        policy, before = start_of(config.policy, base, out, vllm=vllm)
    sampling = config.sample.sampling(config.seed)
    texts: dict[str, Text] = {}
    answered: list[dict[str, tuple[Prompt, Response]]] = []
    for name, voice in (("dpo", trained(policy, out / "dpo", vllm=vllm)), ("start", before)):
        asked = with_tokens(sampling) if name == "dpo" else sampling
        groups = calls.sample("compare", voice, held_out, config.compare.samples, asked)
        of_policy = {}
        for prompt, answers in groups:
            for found, text in answers:
                r = found.model_copy(update={"id": f"{name}:{found.id}"})
                of_policy[found.id] = (prompt, r)
                texts[r.id] = text
        answered.append(of_policy)
    dpo, first = answered
    pairs = [Pair(prompt, r, first[i][1]) for i, (prompt, r) in dpo.items() if i in first]
    calls.judge("compare", config.judge.in_both_orders(), tiers, pairs, texts)


def _by_vllm(config: RunConfig) -> bool:
    """Whether vLLM serves what the run trains, rather than transformers."""
    base = config.policy.model if config.dpo.base in (None, SFT) else config.dpo.base
    return by_vllm(str(base), config.compare.engine)
