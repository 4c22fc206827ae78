"""One file a stage: a typed config and `run`. No stage imports another; the recipe orders them."""

ORDER = {
    "revise": "Have the policy criticise and revise its answers by the constitution (SL-CAI).",
    "train-sft": "Fine-tune the policy on the final revisions.",
    "sample": "Sample K answers of the policy to every prompt.",
    "certify": "Hold the judge against pairs that people have judged, where judge.gate says so.",
    "judge": "Compare the answers under the constitution's principles.",
    "pairs": "Turn comparisons into preference groups and a dataset.",
    "train-rm": "Train a reward model on the preference groups.",
    "train-dpo": "Train a policy by DPO on the same groups.",
    "train-rl": "Train a policy by RL against the reward model, where the config has a section rl.",
    "compare": "Compare the reward model, the DPO policy and the start policy.",
}
"""The stages of a run, in order, and what each does. Free of imports: `rlaif --help` reads it."""
