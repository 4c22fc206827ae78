"""Bad input at the command line: one clear line, exit code 2, and nothing lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Finished
from local_server import Script, Server, error

from rlaif import recipe
from rlaif.models.server import VLLMServer

ROOT = Path(__file__).parent.parent
Cli = Callable[..., Finished]
QUICK = ("sample.k=2", "sample.limit=3")


def written(text: str, name: str) -> Path:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


# Constitution.


def test_a_missing_constitution(run_cli: Cli) -> None:
    line = run_cli("judge", "smoke", "judge.constitution=kindness").refused()
    assert line == (
        "constitutions: 'kindness' is neither a file nor one of ours "
        "(give a path, or one of: code-review, concise, harmless, hhh, human-rights, support)"
    )
    assert (
        "(did you mean 'concise'? give a path"
        in run_cli("judge", "smoke", "judge.constitution=consise").refused()
    )
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("id: x\nversion: '1'\nprinciples: [\n", "mine.yaml:4: not valid YAML"),
        ("id: x\nversion: '1'\nprinciples: []\n", "mine.yaml:1: has no principles"),
        (
            "id: x\nversion: '1'\ndescription: y\nprinciples:\n  - id: a\n    txt: b\n",
            "mine.yaml:6: principles[0].txt: no such field 'txt' (did you mean 'text'?)",
        ),
        ("", "mine.yaml:1: is empty or not a mapping"),
    ],
)
def test_a_malformed_constitution(run_cli: Cli, text: str, place: str) -> None:
    written(text, "mine.yaml")
    assert run_cli("sample", "smoke", "judge.constitution=mine.yaml").refused().startswith(place)
    assert not Path("outputs").exists()


# Config.


def test_a_missing_recipe(run_cli: Cli) -> None:
    line = run_cli("run", "dmeo").refused()
    assert line.startswith(
        "recipes: 'dmeo' is neither a file nor one of ours (did you mean 'demo'? give"
    )
    assert "cai, demo, lee-tables, planted, " in line


def test_neither_recipe_nor_run(run_cli: Cli) -> None:
    assert run_cli("sample").refused().startswith("no recipe and no run (name a recipe")
    assert "holds no run (no config.yaml)" in run_cli("sample", "--out", "nowhere").refused()


def test_an_unknown_field_on_the_command_line(run_cli: Cli) -> None:
    assert run_cli("run", "smoke", "sample.kk=3").refused() == (
        "command line: sample.kk: no such field 'kk' (did you mean 'k'?)"
    )
    assert "did you mean 'judge'?" in run_cli("run", "smoke", "jugde.mode=pairwise").refused()
    assert not Path("outputs").exists()


def test_an_unknown_field_in_the_file(run_cli: Cli) -> None:
    smoke = (ROOT / "rlaif" / "recipes" / "smoke.yaml").read_text(encoding="utf-8")
    text = smoke.replace("  k: 4\n", "  k: 4\n  temprature: 0.5\n")
    number = text.splitlines().index("  temprature: 0.5") + 1
    written(text, "mine.yaml")
    assert run_cli("run", "mine.yaml").refused() == (
        f"mine.yaml:{number}: sample.temprature: no such field 'temprature' "
        "(did you mean 'temperature'?)"
    )


def test_a_value_out_of_range(run_cli: Cli) -> None:
    assert run_cli("run", "smoke", "sample.k=1").refused() == (
        "command line: sample.k: found 1 (input should be greater than or equal to 2)"
    )


# Templates and prompts.


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("{{ response_a }}\n{{ respose_b }}", "mine.j2:3: the variable 'respose_b' is not given"),
        ("{{ response_a", "mine.j2:3: not a valid template"),
        ("{{ response_a | fnce }}", "mine.j2:2: not a valid template: No filter named 'fnce'"),
    ],
)
def test_a_broken_template(run_cli: Cli, text: str, place: str) -> None:
    written(f'{{% message "user" %}}\n{text}\n{{% endmessage %}}\n', "mine.j2")
    assert run_cli("sample", "smoke", "judge.template=mine.j2").refused().startswith(place)
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"prompt": "Hi"', "not valid JSON"),
        ("", "the row is empty"),
        ('{"prompt": ""}', "the prompt is empty"),
        ('{"promt": "Hi"}', "unknown field 'promt'"),
    ],
)
def test_a_broken_or_empty_row(run_cli: Cli, row: str, said: str) -> None:
    good = "".join(f'{{"prompt": "{i}?"}}\n' for i in range(4))
    written(f"{good}{row}\n{good}", "mine.jsonl")
    line = run_cli("sample", "smoke", "sample.prompts=mine.jsonl").refused()
    assert line.startswith(f"mine.jsonl:5: {said}")


# Models.


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("judge.model=opnai/gpt", "judge.model: unknown model 'opnai/gpt' (did you mean openai/…?"),
        ("policy.model=gpt", "policy.model: unknown model 'gpt' (known forms: "),
        ("judge.model=fake/shortr", "judge.model: no fake model 'shortr' (did you mean fake/short"),
        ("judge.model=fake/faulty?rate=x", "judge.model: the option rate must be a number"),
        (
            "policy.model=embedded/smollm",
            "model: unknown embedded model 'smollm' (there are smollm2-",
        ),
        ("judge.model=http://h:1/v1", "judge.model: 'http://h:1/v1' does not say which model"),
        ("judge.model=openai/gpt", "judge.model: no API key: OPENAI_API_KEY is not set (export"),
        ("judge.model=anthropic/c", "judge.model: no API key: ANTHROPIC_API_KEY and ANTHROPIC_AU"),
        ("policy.model=openai/gpt", "policy.model: no API key: OPENAI_API_KEY is not set"),
        ("policy.model=vllm/./nowhere", "nowhere: policy.model: is not a folder (name a Hugging"),
        ("policy.model=vllm/./", ".: policy.model: holds no model (no config.json) (name a Hug"),
        ("judge.model=vllm/./nowhere", "nowhere: judge.model: is not a folder"),
        ("reward_model.base=fake/policy", "reward_model.base: 'fake/policy' gives no weights to"),
        ("dpo.base=vllm/./nowhere", "nowhere: dpo.base: is not a folder"),
    ],
)
def test_a_model_that_cannot_be_used_is_found_before_anything_is_asked(
    run_cli: Cli, override: str, said: str
) -> None:
    assert run_cli("run", "smoke", override).refused().startswith(said)
    assert not Path("outputs").exists()


@pytest.mark.parametrize("field", ["judge.model", "policy.model"])
def test_a_key_in_the_address_is_refused_and_shown_nowhere(run_cli: Cli, field: str) -> None:
    found = run_cli("run", "smoke", f"{field}=http://h:1/v1?api-key=s3cret#m")
    assert found.refused() == (
        f"{field}: the address of the server holds a query "
        "(leave it out; a key is read from RLAIF_HTTP_API_KEY)"
    )
    assert "s3cret" not in found.out + found.err
    assert not Path("outputs").exists()


def test_training_from_a_model_without_weights_is_found_before_it_is_asked(
    run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    smoke = yaml.safe_load((ROOT / "rlaif" / "recipes" / "smoke.yaml").read_text())
    del smoke["reward_model"]["base"]
    written(yaml.safe_dump(smoke | {"policy": {"model": "openai/gpt"}}), "mine.yaml")
    line = run_cli("run", "mine.yaml").refused()
    assert line.startswith("policy.model: 'openai/gpt' gives no weights to train from")


def test_a_stage_wants_only_the_keys_that_it_uses(run_cli: Cli) -> None:
    later = ("judge.model=openai/gpt", "dpo.base=vllm/./later")
    assert run_cli("sample", "smoke", *QUICK, *later, "--out", "r").code == 0
    assert "no API key" in run_cli("judge", "--out", "r").refused()


def test_a_wrong_key_is_one_line_and_is_not_shown(
    run_cli: Cli, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = [Script(401, error("auth", text="bad key sk-planted-1"))] * 3
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-1")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/v1")
    found = run_cli("sample", "smoke", *QUICK, "policy.model=openai/gpt", "--out", "r")
    line = found.stopped()
    assert line.startswith("policy.model: the provider refuses the API key")
    assert "sk-planted-1" not in found.err
    files = [p for p in Path("r").rglob("*") if p.is_file()]
    assert Path("r/config.yaml") in files
    assert not [p for p in files if b"sk-planted" in p.read_bytes()]


def test_a_server_that_is_not_there(run_cli: Cli) -> None:
    found = run_cli("sample", "smoke", *QUICK, "policy.model=http://127.0.0.1:1/v1#m")
    assert found.stopped().startswith(
        "policy.model: no server answers at http://127.0.0.1:1/v1 (start it"
    )


def test_a_port_in_use(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VLLMServer, "needs", "http")  # as if vLLM were installed
    Path("model").mkdir()
    written("{}", "model/config.json")
    written("", "model/model.safetensors")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        overrides = ("policy.model=vllm/./model", f"policy.server.port={port}")
        line = run_cli("sample", "smoke", *QUICK, *overrides).stopped()
    assert line == (
        f"policy.model: port {port} is in use (name another port, or none to take a free one)"
    )


def test_a_model_folder_without_weights(run_cli: Cli) -> None:
    Path("model").mkdir()
    written("{}", "model/config.json")
    line = run_cli("sample", "smoke", *QUICK, "policy.model=vllm/./model").stopped()
    assert "this directory holds no weights" in line


# Interruptions and failures that are no bad input.


def test_control_c_says_that_nothing_is_lost(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "execute", interrupted)
    found = run_cli("run", "smoke")
    assert found.code == 130
    assert found.err.startswith(
        "rlaif: stopped; every answer so far is stored, this goes on: rlaif"
    )


def test_too_many_failed_calls_are_exit_code_3(run_cli: Cli) -> None:
    assert run_cli("sample", "smoke", *QUICK, "--out", "r").code == 0
    refusing = ("judge.model=fake/refuse", "--reconfigure", "--out", "r")
    found = run_cli("judge", *refusing)
    assert found.code == 3
    assert found.err.splitlines()[-1].startswith("rlaif: 3 of 3 comparisons ended unscored")


# The same through a real process.


def process(*arguments: str, cwd: Path) -> Finished:
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-m", "rlaif", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=300,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "smoke", "sample.kk=3"), "command line: sample.kk: no such field"),
        (("judge", "smoke", "judge.constitution=x"), "constitutions: 'x' is neither a file"),
        (("sample", "smoke", "policy.model=openai/gpt"), "policy.model: no API key: OPENAI_API"),
    ],
)
def test_a_real_process_says_one_line_and_ends_with_2(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    assert process(*arguments, cwd=tmp_path).refused().startswith(said)


def test_a_real_process_that_is_interrupted_ends_with_130(tmp_path: Path) -> None:
    with socket.socket() as silent:  # accepts, and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        model = f"policy.model=http://127.0.0.1:{silent.getsockname()[1]}/v1#m"
        with subprocess.Popen(
            [sys.executable, "-m", "rlaif", "sample", "smoke", model, "--out", "r"],
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            # Whoever runs the tests in the background has SIGINT ignored; children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as running:
            assert running.stderr is not None
            assert running.stderr.readline() == "sample …\n"
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(1) == b"G"  # the request for /v1/models
                running.send_signal(signal.SIGINT)
                said = running.stderr.read()
    assert running.returncode == 130
    assert said.splitlines()[-1].startswith("rlaif: stopped; every answer so far is stored")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nope",), "No such command 'nope'"),
        (("run", "smoke", "--nope"), "No such option: --nope"),
        (("score",), "Missing argument 'RM'"),
        (("best-of-n", "a", "b", "--n", "0"), "Invalid value for '--n'"),
    ],
)
def test_a_mistake_in_the_arguments_is_a_json_line_too(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rlaif", "--json-logs", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    (line,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert line["event"] == "error"
    assert line["text"].startswith(f"rlaif: {said}")
