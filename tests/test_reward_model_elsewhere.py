"""What others make of a reward model's folder: transformers' pipeline, TRL, and a real vLLM."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from datasets import Dataset
from test_train_training import GROUPS, quiet_step
from transformers import AutoTokenizer, pipeline
from trl import RewardConfig, RewardTrainer

from rlaif.models.server import VLLMServer
from rlaif.models.server_settings import ServerConfig
from rlaif.train.reward_model import RewardModel
from rlaif.train.scale import RewardScale, write_scale
from rlaif.train.scoring import score_members
from rlaif.train.settings import LoraSettings, RewardSettings
from rlaif.train.tiny import make_tiny
from rlaif.train.training import train_reward_model
from rlaif.types import Message, Prompt

with warnings.catch_warnings():
    # Of TRL's own use of vLLM, which there is none of here.
    warnings.filterwarnings("ignore", "TRL currently supports vLLM")
    from trl import RLOOConfig, RLOOTrainer

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
HUB_MODEL = "someone/reward"
PROMPT = "Why is the sky blue?"
RESPONSES = ["Light scatters.", "I do not know, and I will not ask.", ""]
LORA = LoraSettings(rank=4, alpha=8)


def trained(folder: Path, members: int = 1, lora: LoraSettings | None = None) -> str:
    """A reward model whose conversations end with what its base pads with, as Llama's do."""
    base = folder / "base"
    make_tiny(base, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\n", "<|im_end|>")
    tokenizer.save_pretrained(base)
    # Far enough from the first weights for scores that a wrong token would change.
    settings = RewardSettings(
        learning_rate=1e-2, epochs=3, batch_groups=2, members=members, lora=lora
    )
    train_reward_model(str(base), GROUPS, settings, 0, folder / "rm", quiet_step, lambda _: None)
    return str(folder / "rm")


@pytest.fixture(scope="module")
def rm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two heads."""
    return trained(tmp_path_factory.mktemp("heads"), members=2)


def first_member(folder: str, responses: list[str] = RESPONSES) -> list[float]:
    model = RewardModel.load(folder, on_log=lambda _: None)
    return [score.raw_M[0] for score in model.score(PROMPT, responses) if score is not None]


def turns(response: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": response}]


@pytest.mark.parametrize(
    ("members", "lora"), [(1, None), (2, None), (2, LORA)], ids=["single", "heads", "merged"]
)
def test_a_pipeline_gives_the_first_members_raw_score(
    tmp_path: Path, members: int, lora: LoraSettings | None
) -> None:
    folder = trained(tmp_path, members, lora)
    classify: Any = pipeline("text-classification", folder)
    texts = [
        str(classify.tokenizer.apply_chat_template(turns(response), tokenize=False))
        for response in RESPONSES
    ]
    expected = first_member(folder)
    for given in ({"function_to_apply": "none"}, {}, {"batch_size": 3}):
        found = classify(texts, add_special_tokens=False, **given)
        assert [row["score"] for row in found] == pytest.approx(expected, abs=1e-4)


def test_trl_evaluates_it_as_we_score_it(rm: str, tmp_path: Path) -> None:
    chosen, rejected, _ = first_member(rm)
    row = {
        "prompt": turns("")[:1],
        "chosen": turns(RESPONSES[0])[1:],
        "rejected": turns(RESPONSES[1])[1:],
    }
    rows = Dataset.from_list([row])
    trainer = RewardTrainer(
        model=rm,
        args=RewardConfig(
            output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, disable_tqdm=True
        ),
        train_dataset=rows,
        eval_dataset=rows,
    )
    assert trainer.evaluate()["eval_margin"] == pytest.approx(chosen - rejected, abs=1e-4)


def test_trls_rl_is_rewarded_by_its_folder_as_we_score_it(rm: str, tmp_path: Path) -> None:
    model = RewardModel.load(rm, on_log=lambda _: None)

    def ours(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        scores = [
            model.score(prompt, [completion[0]["content"]])[0]
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return [score.raw_M[0] for score in scores if score is not None]

    trainer = RLOOTrainer(
        model=str(Path(rm).parent / "base"),
        reward_funcs=[rm, ours],
        args=RLOOConfig(
            output_dir=str(tmp_path),
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            max_steps=1,
            logging_steps=1,
            num_generations=4,
            per_device_train_batch_size=4,
            max_completion_length=12,
        ),
        train_dataset=Dataset.from_list([{"prompt": turns("")[:1]}] * 2),
    )
    trainer.train()
    (told,) = [line for line in trainer.state.log_history if "rewards/ours/mean" in line]
    assert told["rewards/rm/mean"] == pytest.approx(told["rewards/ours/mean"], abs=1e-4)
    assert told["rewards/rm/std"] == pytest.approx(told["rewards/ours/std"], abs=1e-4)
    assert told["rewards/rm/std"] > 0


@pytest.mark.real
def test_a_real_vllm_gives_the_first_members_raw_score(rm: str, tmp_path: Path) -> None:
    config = ServerConfig(max_model_len=1024, kv_cache_gib=0.25, extra_args=("--runner", "pooling"))
    server = VLLMServer(rm, config, tmp_path / "vllm.log", print)

    async def served() -> list[tuple[float, float]]:
        await server.start()
        root = server.base_url.removesuffix("/v1")
        headers = {"Authorization": f"Bearer {server.api_key}"}
        found = []
        try:
            async with httpx.AsyncClient(
                base_url=root, headers=headers, trust_env=False, timeout=60
            ) as client:
                for response in RESPONSES:
                    asked = {"model": server.name, "messages": turns(response)}
                    classified = await client.post("/classify", json=asked)
                    pooled = await client.post("/pooling", json={**asked, "task": "classify"})
                    (one,) = classified.json()["data"]
                    (other,) = pooled.json()["data"]
                    found.append((one["probs"][0], other["data"][0]))
        finally:
            await server.stop()
        return found

    found = asyncio.run(served())
    expected = first_member(rm)
    assert [one for one, _ in found] == pytest.approx(expected, abs=1e-2)
    assert [other for _, other in found] == pytest.approx(expected, abs=1e-2)
    assert max(expected) - min(expected) > 0.1


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as a model is fetched from."""

    folder: Path

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        files = [p for p in self.folder.rglob("*") if p.is_file()]
        names = [str(p.relative_to(self.folder)) for p in files]
        if path.startswith(f"/api/models/{HUB_MODEL}/tree/"):
            listed = [
                {"type": "file", "path": name, "size": p.stat().st_size, "oid": "0" * 40}
                for name, p in zip(names, files, strict=True)
            ]
            self._answer(json.dumps([] if "chat_templates" in path else listed).encode())
        elif path.startswith(f"/api/models/{HUB_MODEL}"):
            told = {"id": HUB_MODEL, "sha": "f" * 40, "siblings": [{"rfilename": n} for n in names]}
            self._answer(json.dumps(told).encode())
        elif (name := path.removeprefix(f"/{HUB_MODEL}/resolve/").partition("/")[2]) in names:
            self._answer((self.folder / name).read_bytes())
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", "f" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def of_hub(folder: Path, code: str, cache: Path) -> Any:
    """What the code prints, as JSON, where the folder is that model of a hub."""
    hub = ThreadingHTTPServer(("127.0.0.1", 0), type("Of", (Hub,), {"folder": folder}))
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}).start()
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(cache),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        )
    finally:
        hub.shutdown()
        hub.server_close()
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_reward_model_of_a_hub_has_its_scale_and_all_its_members(rm: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(rm, tmp_path / "hub"))
    write_scale(RewardScale(mean=(1, 2), std=(2, 1), responses=9, temperature=3.0), folder)
    expected = RewardModel.load(folder).score(PROMPT, RESPONSES)
    code = (
        "import json; from rlaif.train.reward_model import RewardModel;"
        f"model = RewardModel.load({HUB_MODEL!r});"
        f"print(json.dumps([model.scale.temperature, model.score({PROMPT!r}, {RESPONSES!r})]))"
    )
    temperature, scores = of_hub(folder, code, tmp_path / "cache")
    assert temperature == 3.0
    assert [s[1] for s in scores] == [pytest.approx(s.members_M) for s in expected if s]


def test_a_run_scores_by_all_adapters_of_a_hubs_ensemble(tmp_path: Path) -> None:
    folder = trained(tmp_path, members=2, lora=LORA)
    prompt = Prompt(id="p", messages=(Message(role="user", content=PROMPT),))
    expected = score_members(folder, [(prompt, RESPONSES)], 1024, quiet_step)
    code = (
        "import json; from rlaif.train.scoring import score_members;"
        "from rlaif.types import Prompt;"
        f"prompt = Prompt.model_validate_json({prompt.model_dump_json()!r});"
        f"items = [(prompt, {RESPONSES!r})];"
        f"print(json.dumps(score_members({HUB_MODEL!r}, items, 1024, lambda *_: None)))"
    )
    ((*scores,),) = of_hub(Path(folder), code, tmp_path / "cache")
    assert scores == [pytest.approx(scores_M) for scores_M in expected[0]]
    assert all(len(scores_M) == 2 for scores_M in scores)
