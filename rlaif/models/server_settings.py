"""What a vLLM server of ours is told: its config, and what this machine makes of it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from rlaif.errors import SetupError
from rlaif.types import Record

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

_LEAST_CACHE_GIB = 0.25
_GPU_STEPS = {
    "utilization": ("--gpu-memory-utilization", ("0.8", "0.7", "0.6")),
    "sequences": ("--max-num-seqs", ("128", "64", "32")),
}


class ServerConfig(Record):
    """How the managed vLLM server is started."""

    port: int | None = Field(default=None, ge=1, le=65535)
    """Port on 127.0.0.1; none: a free one."""
    startup_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds until the server must answer."""
    max_model_len: int = Field(default=4096, gt=0)
    """Longest prompt and answer together, in tokens. A local model made for less gets its own."""
    dtype: Dtype = "auto"
    """`auto`: the model's own on a GPU; on a CPU bfloat16 with AMX units, else float32."""
    eager: bool | None = None
    """Skip compilation; none: on a CPU only, where compiling takes the start from about 45 seconds
    to about 3 minutes."""
    kv_cache_gib: float = Field(default=2.0, gt=0)
    """Memory for the key-value cache on a CPU, in GiB. A GPU's share is vLLM's own choice."""
    restarts: int = Field(default=3, ge=0)
    """How often in one run a server that has died is started again."""
    extra_args: tuple[str, ...] = ()
    """More arguments of vLLM's API server, as on its command line."""

    def smaller(self, what: str, *, on_gpu: bool) -> tuple[Self, str] | None:
        """The same with less memory, and what to tell of it; None where it can do with no less.
        Nothing that shapes an answer is changed, the longest context neither."""
        if not on_gpu:
            if self.kv_cache_gib <= _LEAST_CACHE_GIB or what not in ("kv cache", "killed"):
                return None
            half = max(_LEAST_CACHE_GIB, self.kv_cache_gib / 2)
            said = f"kv_cache_gib {half:g} instead of {self.kv_cache_gib:g}"
            return self.model_copy(update={"kv_cache_gib": half}), said
        steps = _GPU_STEPS.get(what)
        if steps is None:
            return None
        flag, values = steps
        now = _value_of(flag, self.extra_args)
        less = [value for value in values if now is None or float(value) < now]
        if not less:
            return None
        args = (*self.extra_args, flag, less[0])
        return self.model_copy(update={"extra_args": args}), f"{flag} {less[0]}"


def _value_of(flag: str, args: Sequence[str]) -> float | None:
    """What an argument of vLLM's is set to: `--flag 1` or `--flag=1`, the last one counts."""
    found = None
    for arg, after in zip(args, (*args, "")[1:], strict=True):
        name, equals, value = arg.partition("=")
        if name.replace("_", "-") == flag:
            with contextlib.suppress(ValueError):
                found = float(value if equals else after)
    return found


class ServerOutOfMemory(SetupError):
    """The server wanted more memory than there is; `smaller` may fit."""

    def __init__(self, error: SetupError, smaller: ServerConfig, said: str) -> None:
        super().__init__(error.problem, fix=error.fix)
        self.smaller = smaller
        self.said = said


def arguments(weights: str, config: ServerConfig) -> list[str]:
    """The arguments of vLLM's API server that shape what it does, for this machine. Raises
    SetupError for weights whose config cannot be read."""
    on_gpu = runs_on_gpu()
    args = ["--max-model-len", str(_fitting_length(weights, config.max_model_len))]
    args += ["--dtype", config.dtype if on_gpu else _cpu_dtype(config.dtype)]
    # The model's generation_config.json would add a top_k or a repetition penalty that no
    # recorded request names; what a request says must be all that shapes its answer.
    args += ["--generation-config", "vllm", "--disable-uvicorn-access-log"]
    # A pickle runs what it likes when it is loaded.
    args += ["--load-format", "safetensors"]
    if _eager(config):
        args.append("--enforce-eager")
    if not on_gpu:
        args += ["--kv-cache-memory-bytes", str(int(config.kv_cache_gib * 2**30))]
        # Only whole blocks of a prefix are shared, and vLLM's own 128 tokens are a third of a
        # judge's prompt: 32, the least there is on a CPU, made judging 1.3 to 1.9 times as
        # fast (benchmarks/RESULTS.md).
        args += ["--block-size", "32"]
    return [*args, *config.extra_args]


def _eager(config: ServerConfig) -> bool:
    return not runs_on_gpu() if config.eager is None else config.eager


def environment(config: ServerConfig) -> dict[str, str]:
    """The environment of the server, without its key."""
    env = {"VLLM_NO_USAGE_STATS": "1", **os.environ}
    if not runs_on_gpu():
        # vLLM's own choice keeps one core back and takes one of each hyperthreaded pair. With fewer
        # threads than cores each server would sit on the first ones, beside idle others.
        bound = "nobind" if "OMP_NUM_THREADS" in env else _cpu_list(_cpus())
        env.setdefault("VLLM_CPU_OMP_THREADS_BIND", bound)
        # It would outrank --kv-cache-memory-bytes, and knows whole GiB only.
        env.pop("VLLM_CPU_KVCACHE_SPACE", None)
        if _eager(config):
            # Even so vLLM compiles a helper at the first request for log-probabilities:
            # 19 s and a C++ compiler, for no gain (64 verdicts take as long without).
            env.setdefault("TORCH_COMPILE_DISABLE", "1")
    return env


def has_gpu() -> bool:
    """Whether the machine shows a device of NVIDIA, AMD or WSL."""
    devices = Path("/dev")
    return any(devices.glob("nvidia[0-9]*")) or any(
        (devices / name).exists() for name in ("kfd", "dxg")
    )


def runs_on_gpu() -> bool:
    """Whether the installed vLLM will use a GPU: there is one and vLLM is not built for CPUs."""
    try:
        return has_gpu() and "+cpu" not in importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return False  # the module comes from another distribution, `vllm-cpu`


def _cpu_dtype(dtype: Dtype, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The dtype for a CPU. SmolLM2-135M on two cores with AVX512-BF16 but without AMX: bfloat16
    about 160 tokens a second, float32 about 230; so AVX512-BF16 alone does not make it worth it."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if cpuinfo.is_file() and "amx_bf16" in cpuinfo.read_text() else "float32"


def _cpus(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> list[int]:
    """The cores that we may use, no more of them than the container's quota pays for."""
    cpus = sorted(os.sched_getaffinity(0))
    if quota.is_file():
        allowed, period = quota.read_text().split()
        if allowed != "max":
            return cpus[: max(1, round(int(allowed) / int(period)))]
    return cpus


def _cpu_list(cpus: list[int]) -> str:
    """As vLLM and the kernel write it: [0, 1, 2, 5] is `0-2,5`."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


def _fitting_length(weights: str, wanted: int) -> int:
    """`wanted`, or the context that a local model was made for where that is less."""
    file = Path(weights) / "config.json"
    if not file.is_file():
        return wanted
    try:
        config: Mapping[str, object] = json.loads(file.read_text())
    except ValueError as error:
        raise SetupError(f"not JSON: {error}", file=file) from error
    own = config.get("max_position_embeddings")
    return min(wanted, own) if isinstance(own, int) else wanted
