"""Critique, revision and fine-tuning on real parts: the embedded model on a real vLLM server, and
then a real vLLM server on what the fine-tuning made of it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlaif.models.pool import weights_identity

pytestmark = pytest.mark.real
# The recipe as it is, but small: what is left out is only more of the same.
SMALL = (
    "revise.limit=6",
    "revise.rounds=1",
    "revise.max_tokens=24",
    "revise.critique_tokens=24",
    "sample.limit=8",
    "sample.k=2",
    "sample.max_tokens=16",
)


def rlaif(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rlaif", *arguments], cwd=cwd, capture_output=True, text=True
    )


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def cai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's stages up to the sampling from the fine-tuned policy."""
    here = tmp_path_factory.mktemp("cai")
    for stage, arguments in (("revise", ("cai", *SMALL)), ("train-sft", ()), ("sample", ())):
        done = rlaif(stage, *arguments, "--out", "run", cwd=here)
        assert done.returncode == 0, done.stderr[-3000:]
    return here / "run"


def test_a_real_model_criticises_and_revises_its_answers(cai: Path) -> None:
    chains = rows(cai / "revisions/chains.jsonl")
    assert len(chains) == 6
    revisions = [revision for chain in chains for revision in chain["revisions"]]
    assert len(revisions) == 6
    assert all(revision["critique"] and revision["text"] for revision in revisions)
    assert "chains.html" in {path.name for path in (cai / "revisions").iterdir()}


def test_the_fine_tuned_policy_finds_the_revisions_likelier_and_is_served(cai: Path) -> None:
    found = json.loads((cai / "report.json").read_text(encoding="utf-8"))
    sft = found["sft"]
    assert sft["examples"] + found["revisions"]["test"] == 6
    assert sft["losses"][-1] > 0
    assert sft["held_out_after"]["value"] != sft["held_out_before"]["value"]
    identity = weights_identity(cai / "sft")
    assert found["run"]["policy"] == identity
    answers = rows(cai / "responses.jsonl")
    assert {answer["model"] for answer in answers} == {identity}
    assert len(answers) == 16


def test_running_it_again_asks_no_model_and_starts_no_server(cai: Path) -> None:
    for stage in ("revise", "train-sft", "sample"):
        done = rlaif(stage, "--out", str(cai), cwd=cai)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "starting a vLLM server" not in done.stderr
    cost = json.loads((cai / "report.json").read_text(encoding="utf-8"))["cost"]
    assert sum(stage["calls_made"] for stage in cost.values()) == 0
