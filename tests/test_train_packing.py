from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlaif.errors import SetupError
from rlaif.train.collate import collate
from rlaif.train.groups import EncodedGroup, encode, encode_groups
from rlaif.train.loading import load_causal, load_reward, load_tokenizer
from rlaif.train.loss import PreferenceLoss
from rlaif.train.scorers import DPOScorer, RewardScorer, packing_error, score_groups
from rlaif.train.tiny import make_tiny
from rlaif.types import Message, PreferenceGroup, Prompt, WeightedComparison

CPU = torch.device("cpu")
RESPONSES = ("Yes.", "No, and here is a longer reason why.", "", "Perhaps\n\nnot at all.")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny(out, seed=0)
    return str(out)


def prompt_of(text: str) -> Prompt:
    return Prompt(id=text, messages=(Message(role="user", content=text),))


def group_of(text: str, responses: tuple[str, ...] = RESPONSES) -> PreferenceGroup:
    pairs = [(i, j) for i in range(len(responses)) for j in range(i + 1, len(responses))]
    return PreferenceGroup(
        prompt=prompt_of(text),
        responses=responses,
        comparisons=tuple(
            WeightedComparison(first=i, second=j, p_first=(i + 1) / (i + j + 2)) for i, j in pairs
        ),
        split="train",
        labeler="test",
    )


def encoded(tiny: str, *groups: PreferenceGroup) -> list[EncodedGroup]:
    return encode_groups(load_tokenizer(tiny), groups, 1024, as_drawn=True).groups


def scorers(tiny: str) -> list[RewardScorer | DPOScorer]:
    torch.manual_seed(1)
    return [
        RewardScorer(load_reward(tiny, load_tokenizer(tiny).pad_token_id, new_head=True)),
        DPOScorer(load_causal(tiny), beta=0.1),
    ]


def test_prompt_and_response_concatenated_are_the_rendered_conversation(tiny: str) -> None:
    tokenizer = load_tokenizer(tiny)
    prompt_ids, response_ids = encode(tokenizer, prompt_of("Is it so?"), RESPONSES, (True,) * 4)
    assert tokenizer.decode(prompt_ids) == (
        "<|im_start|>user\nIs it so?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(response_ids[0]) == "Yes.<|im_end|>\n"


def test_a_template_that_hides_where_the_response_begins_is_refused(tiny: str) -> None:
    tokenizer = load_tokenizer(tiny)
    tokenizer.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(SetupError, match="renders a prompt differently once it is answered"):
        encode(tokenizer, prompt_of("Hello"), ["Hi"], [True])


def test_a_cut_response_ends_with_its_last_text_token_where_it_is_encoded_as_drawn(
    tiny: str,
) -> None:
    tokenizer = load_tokenizer(tiny)
    group = group_of("Is it so?").model_copy(update={"ended": (True, False, True, False)})
    (drawn,) = encode_groups(tokenizer, [group], 1024, as_drawn=True).groups
    (whole,) = encode_groups(tokenizer, [group], 1024, as_drawn=False).groups
    assert drawn.prompt_ids == whole.prompt_ids
    assert [tokenizer.decode(ids) for ids in drawn.response_ids] == [
        "Yes.<|im_end|>\n",
        "No, and here is a longer reason why.",
        "<|im_end|>\n",
        "Perhaps\n\nnot at all.",
    ]
    assert [tokenizer.decode(ids) for ids in whole.response_ids] == [
        text + "<|im_end|>\n" for text in RESPONSES
    ]


def test_a_response_that_was_cut_before_its_first_token_is_dropped(tiny: str) -> None:
    group = group_of("a", ("", "one", "two")).model_copy(update={"ended": (False, True, True)})
    result = encode_groups(load_tokenizer(tiny), [group], 1024, as_drawn=True)
    assert result.dropped_responses == 1
    assert len(result.groups[0].response_ids) == 2
    assert encode_groups(load_tokenizer(tiny), [group], 1024, as_drawn=False).dropped_responses == 0


def test_too_long_responses_are_dropped_with_their_comparisons_and_counted(tiny: str) -> None:
    tokenizer = load_tokenizer(tiny)
    long = "x" * 200
    groups = [group_of("a", (long, "fits", "fits too")), group_of("b", ("fits", long))]
    result = encode_groups(tokenizer, groups, max_length=100, as_drawn=False)
    assert result.dropped_responses == 2
    (kept,) = result.groups
    assert [tokenizer.decode(ids).split("<")[0] for ids in kept.response_ids] == [
        "fits",
        "fits too",
    ]
    (comparison,) = kept.comparisons
    assert (comparison.first, comparison.second) == (0, 1)
    assert comparison.p_first == groups[0].comparisons[2].p_first


def test_nothing_left_to_train_on_is_an_error_that_names_the_limit(tiny: str) -> None:
    with pytest.raises(SetupError, match=r"max_length: no group is left to train on: 4 responses"):
        encode_groups(load_tokenizer(tiny), [group_of("a")], max_length=10, as_drawn=False)


def test_packed_and_unpacked_scores_are_equal(tiny: str) -> None:
    groups = encoded(
        tiny, group_of("short?"), group_of("A much longer question than the other one?", ("a", "b"))
    )
    pad = load_tokenizer(tiny).pad_token_id
    for scorer in scorers(tiny):
        with torch.no_grad():
            packed_N = scorer(collate(groups, pad, packed=True))
            unpacked_N = scorer(collate(groups, pad, packed=False))
        assert packed_N.shape == (6,)
        torch.testing.assert_close(packed_N, unpacked_N, rtol=1e-5, atol=1e-5)
        assert packing_error(scorer, groups, pad, CPU) < 1e-5


def test_a_response_does_not_see_the_others(tiny: str) -> None:
    pad = load_tokenizer(tiny).pad_token_id
    for scorer in scorers(tiny):
        with torch.no_grad():
            one = scorer(collate(encoded(tiny, group_of("q", ("same", "A"))), pad, packed=True))
            two = scorer(collate(encoded(tiny, group_of("q", ("same", "B!"))), pad, packed=True))
        assert one[0].item() == pytest.approx(two[0].item(), abs=1e-6)
        assert one[1].item() != pytest.approx(two[1].item(), abs=1e-6)


def test_gradients_of_packed_and_unpacked_batches_are_equal(tiny: str) -> None:
    groups = encoded(tiny, group_of("q"), group_of("another", ("a", "bb")))
    pad = load_tokenizer(tiny).pad_token_id
    for scorer in scorers(tiny):
        gradients = []
        for packed in (True, False):
            scorer.zero_grad()
            scorer(collate(groups, pad, packed=packed)).square().sum().backward()
            gradients.append({n: p.grad.clone() for n, p in scorer.named_parameters()})
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("padding", ["<|pad|>", "<|im_end|>"])
def test_the_reward_is_what_the_plain_classifier_gives_for_the_conversation(
    tiny: str, padding: str
) -> None:
    # A conversation that ends with the padding token: the plain model reads the token before it.
    tokenizer = load_tokenizer(tiny)
    tokenizer.pad_token = padding
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\n", "<|im_end|>")
    scorer = RewardScorer(load_reward(tiny, tokenizer.pad_token_id, new_head=True))
    (group,) = encode_groups(tokenizer, [group_of("q")], 1024, as_drawn=False).groups
    assert group.response_ids[0][-1] == tokenizer.eos_token_id
    with torch.no_grad():
        scores_K = scorer(collate([group], tokenizer.pad_token_id, packed=True))
        for score, ids in zip(scores_K, group.response_ids, strict=True):
            whole = torch.tensor([group.prompt_ids + ids])
            plain = scorer.model(input_ids=whole).logits[0, 0]
            assert score.item() == pytest.approx(plain.item(), abs=1e-5)


def test_the_log_probability_is_the_sum_over_the_response_tokens(tiny: str) -> None:
    tokenizer = load_tokenizer(tiny)
    model = load_causal(tiny)
    scorer = DPOScorer(model, beta=1.0)
    (group,) = encoded(tiny, group_of("q"))
    with torch.no_grad():
        scores_K = scorer(collate([group], tokenizer.pad_token_id, packed=True))
        for score, ids in zip(scores_K, group.response_ids, strict=True):
            whole = torch.tensor([group.prompt_ids + ids])
            log_prob_TV = model(input_ids=whole).logits[0].log_softmax(-1)
            start = len(group.prompt_ids)
            by_hand = sum(log_prob_TV[start + i - 1, token].item() for i, token in enumerate(ids))
            assert score.item() == pytest.approx(by_hand, rel=1e-5)


def test_scores_come_back_in_the_order_given_whatever_their_lengths(tiny: str) -> None:
    texts = ["a" * n for n in (3, 500, 40, 2000, 7)]
    groups = encode_groups(
        load_tokenizer(tiny), [group_of(text, ("x", "yy")) for text in texts], 4096, as_drawn=True
    ).groups
    pad = load_tokenizer(tiny).pad_token_id
    scorer = scorers(tiny)[0]
    seen: list[tuple[int, int]] = []
    together = score_groups(
        scorer, groups, pad, packed=True, device=CPU, on_group=lambda *done: seen.append(done)
    )
    for group, scores_K in zip(groups, together, strict=True):
        with torch.no_grad():
            alone = scorer(collate([group], pad, packed=True)).tolist()
        assert list(scores_K) == pytest.approx(alone, abs=1e-5)
    assert seen[-1] == (5, 5)


def test_a_tokenizer_without_chat_template_is_refused(tiny: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((Path(tiny) / "config.json").read_text())
    with pytest.raises(SetupError, match="has no chat template"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_without_padding_pads_with_its_end(tiny: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((Path(tiny) / "config.json").read_text())
    assert load_tokenizer(str(tmp_path)).pad_token == "<|im_end|>"


def test_the_loss_of_four_responses_is_that_of_their_six_pairs_scored_one_by_one(
    tiny: str,
) -> None:
    tokenizer = load_tokenizer(tiny)
    pad = tokenizer.pad_token_id
    group = group_of("Which of the four?")
    for scorer in scorers(tiny):
        batch = collate(encoded(tiny, group), pad, packed=True)
        together = PreferenceLoss().of_each(scorer(batch), batch).mean()
        naive = []
        for c in group.comparisons:
            prompt_ids, response_ids = encode(
                tokenizer,
                group.prompt,
                [group.responses[c.first], group.responses[c.second]],
                [True, True],
            )
            pair = EncodedGroup(prompt_ids, response_ids, (), (0.0, 0.0))
            first, second = scorer(collate([pair], pad, packed=False))
            margin = (first - second).double()
            q = torch.sigmoid(margin)
            naive.append(-(c.p_first * q.log() + (1 - c.p_first) * torch.sigmoid(-margin).log()))
        assert len(naive) == 6
        assert together.item() == pytest.approx(torch.stack(naive).mean().item(), rel=1e-5)
