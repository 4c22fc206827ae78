"""Secrets reach no file and no terminal; weights run no code; nothing is written outside a run."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import Finished
from local_server import Script, Server, completion, error

from rlaif.errors import SetupError
from rlaif.redact import HIDDEN, VARIABLES, redacted
from rlaif.train.loading import load_causal

Cli = Callable[..., Finished]
KEY = "sk-planted/0123456789+secret"
FORMS = (KEY, quote(KEY, safe=""), base64.b64encode(KEY.encode()).decode().rstrip("="))
QUICK = ("sample.limit=2", "sample.k=2", "policy.attempts=1", "--out", "r")


def traces(folder: Path) -> list[str]:
    """Files with the key in them, the store's bytes among them."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and any(form.encode() in path.read_bytes() for form in FORMS)
    ]


@pytest.mark.parametrize("variable", VARIABLES)
def test_every_known_variable_is_a_secret(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, KEY)
    for form in FORMS:
        assert redacted(f"a {form} b") == f"a {HIDDEN} b"


def test_a_short_value_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAIF_HTTP_API_KEY", "none")
    assert redacted("none of it") == "none of it"


def test_a_server_that_repeats_the_key_brings_it_nowhere(
    run_cli: Cli, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a good answer, in a refusal, and in headers; the run's folder is searched byte by byte."""
    monkeypatch.setenv("RLAIF_HTTP_API_KEY", KEY)
    said = f"You sent Authorization: Bearer {KEY}"
    server.script = [
        Script(body={"data": [{"id": "m"}]}),
        Script(body=completion(said, "Hello."), headers={"x-echo": KEY}),
        Script(400, error("bad", text=said)),
    ]
    model = f"policy.model={server.url}/v1#m"
    found = run_cli("sample", "smoke", *QUICK, model, "policy.concurrency=1", "sample.max_failed=1")
    assert found.code == 0, found
    assert f"You sent Authorization: Bearer {HIDDEN}" in Path("r/responses.jsonl").read_text()
    assert traces(Path("r")) == []
    assert not any(form in found.out + found.err for form in FORMS)
    assert server.seen[1].headers["authorization"] == f"Bearer {KEY}"


def test_a_traceback_of_a_bug_is_redacted(tmp_path: Path) -> None:
    code = (
        "import sys, os\n"
        "from rlaif import cli, recipe\n"
        "def broken(*a, **k): raise ZeroDivisionError('sent ' + os.environ['OPENAI_API_KEY'])\n"
        "recipe.load_run = broken\n"
        "sys.argv = ['rlaif', 'run', 'smoke']\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        env={**os.environ, "OPENAI_API_KEY": KEY},
    )
    assert done.returncode == 1
    assert f"ZeroDivisionError: sent {HIDDEN}" in done.stderr
    assert KEY not in done.stderr + done.stdout


def test_json_logs_are_one_object_a_line_and_hold_no_key(tmp_path: Path, server: Server) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "rlaif", "--json-logs", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
                "RLAIF_HTTP_API_KEY": KEY,
            },
        )

    said = f"You sent Authorization: Bearer {KEY}"
    server.script = [
        Script(body={"data": [{"id": "m"}]}),
        Script(400, error("bad", text=said)),
        Script(body=completion("Hello.", "Hello.")),
    ]
    model = f"policy.model={server.url}/v1#m"
    done = run("sample", "smoke", *QUICK, model, "policy.concurrency=1", "sample.max_failed=1")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert "progress" in events
    assert HIDDEN in done.stderr
    assert not any(form in done.stderr for form in FORMS)
    (line,) = run("sample", "smoek").stderr.splitlines()
    assert json.loads(line)["event"] == "error"


def test_weights_in_a_pickle_are_refused(tmp_path: Path) -> None:
    from rlaif.train.tiny import make_tiny

    make_tiny(tmp_path / "tiny", 0)
    (tmp_path / "tiny" / "model.safetensors").rename(tmp_path / "tiny" / "pytorch_model.bin")
    with pytest.raises(SetupError, match="safetensors"):
        load_causal(str(tmp_path / "tiny"))


def test_a_model_that_brings_its_own_code_is_refused(tmp_path: Path) -> None:
    from rlaif.train.tiny import make_tiny

    make_tiny(tmp_path / "tiny", 0)
    config = tmp_path / "tiny" / "config.json"
    plain = json.loads(config.read_text())
    plain |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    config.write_text(json.dumps(plain))
    (tmp_path / "tiny" / "own.py").write_text("open('ran', 'w')\nclass Config: pass\n")
    with pytest.raises(SetupError):
        load_causal(str(tmp_path / "tiny"))
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["../away", "/tmp/away", "a/../../b", "..", "."])
def test_a_runs_name_cannot_lead_out_of_the_outputs(run_cli: Cli, name: str) -> None:
    before = sorted(Path("..").resolve().rglob("*"))
    found = run_cli("sample", "smoke", f"name={name}", "sample.limit=2", "sample.k=2")
    written = set(Path("..").resolve().rglob("*")) - set(before)
    outputs = Path("outputs").resolve()
    assert all(outputs == path or outputs in path.parents for path in written), found


def test_hostile_ids_of_prompts_name_no_files(run_cli: Cli) -> None:
    ids = ["../../away", "/etc/passwd", "a\x00b", "..", "con|<>:*?"]
    rows = [json.dumps({"id": name, "prompt": f"Say hello {i}."}) for i, name in enumerate(ids)]
    Path("set.jsonl").write_text("\n".join(rows) + "\n")
    found = run_cli("sample", "smoke", "sample.prompts=./set.jsonl", "sample.limit=5", "--out", "r")
    assert found.code == 0, found
    assert {p.name for p in Path().iterdir()} == {"set.jsonl", "r"}
    assert run_cli("judge", "--out", "r").code == 0
    assert {p.name for p in Path().iterdir()} == {"set.jsonl", "r"}
