"""How an engine is started: its settings, and vLLM's AsyncLLM made from them.

vLLM is imported by `import_vllm`, never by this module, so that importing it costs nothing and the environment is set
first.
"""

from __future__ import annotations

import atexit
import gc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.generator.checkpoint_layout import CheckpointLayout, read_layout

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

WEIGHT_BACKEND = "tributary"
FRONT_PID = "TRIBUTARY_ENGINE_FRONT_PID"
_WORKER_EXTENSION = "services.generator.worker.WorkerExtension"
_SCHEDULER = "services.generator.held_outputs.HoldingScheduler"
_CPU_KV_CACHE_BYTES = 256 << 20
_SPARE_SEQS = 4
"""Places beside those that are asked for: the canary need not wait until a long sequence ends."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How to start an engine.

    model: a directory or a hub name. dtype: "auto" is float32 on CPU (where bfloat16 is slow and inexact), otherwise
    bfloat16. kv_cache_bytes, gpu_memory_utilization: None lets the platform choose (256 MiB on CPU). seed: give every
    generator its own, or they sample alike. clear_cache_on_update: recompute the attention cache of running sequences
    after an update, so that the weights of a token's own version reproduce its log-prob; False resumes sooner on the
    old cache. version: what the weights in `model` are called. control_timeout_s bounds each control call of an update;
    it has to cover loading the weights once.
    """

    model: str
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    kv_cache_bytes: int | None = None
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int = 1
    seed: int = 0
    clear_cache_on_update: bool = True
    version: int = 0
    control_timeout_s: float = 60.0

    def import_vllm(self) -> None:
        """Import vLLM, after setting what it reads from the environment, for this process and for the core."""
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ[FRONT_PID] = str(os.getpid())
        if Path(self.model).is_dir():
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        if self.tensor_parallel_size == 1:
            # Gloo would listen on whatever address the host's name has, without any authentication.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")

        import vllm.v1.engine.async_llm  # noqa: F401 (what takes long, and what `create` needs)
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            os.environ.setdefault("OMP_NUM_THREADS", "1")
            # The engine has torch compile one small kernel, for which a machine would need a C++ compiler.
            os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
            if self.tensor_parallel_size == 1:
                # The worker then lives in the core itself: one process less, and the kernel can tie it to this one.
                os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

    def create(self) -> AsyncLLM:
        """Start the engine core, blocking until it is ready. `import_vllm` comes first."""
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        from services.generator.engine_gauges import EngineGauges

        atexit.register(gc.collect)  # a closed AsyncLLM sits in a cycle; its __del__ fails once modules are torn down
        return AsyncLLM.from_engine_args(self._arguments(on_cpu=current_platform.is_cpu()), stat_loggers=[EngineGauges])

    def layout(self, *, tied: bool) -> CheckpointLayout | None:
        """The layout of the weights that the engine starts with; None if they are not safetensors."""
        directory = Path(self.model)
        if not directory.is_dir():
            from huggingface_hub import snapshot_download

            directory = Path(snapshot_download(self.model, allow_patterns=["*.safetensors"], local_files_only=True))
        return read_layout(directory, tied=tied) if any(directory.glob("*.safetensors")) else None

    def _arguments(self, *, on_cpu: bool) -> AsyncEngineArgs:
        from vllm.config import WeightTransferConfig
        from vllm.engine.arg_utils import AsyncEngineArgs

        optional: dict[str, Any] = {
            "dtype": ("float32" if on_cpu else "bfloat16") if self.dtype == "auto" else self.dtype,
            "max_model_len": self.max_model_len,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "kv_cache_memory_bytes": self.kv_cache_bytes,
        }
        if on_cpu:
            # Without a size it asks for most of the RAM; compiled graphs bring nothing here.
            optional["kv_cache_memory_bytes"] = self.kv_cache_bytes or _CPU_KV_CACHE_BYTES
            optional |= {"enforce_eager": True, "block_size": 32}
            # Scheduling ahead hides nothing here, where one thread does both, and computes a token too many a sequence.
            optional |= {"async_scheduling": False, "scheduler_cls": _SCHEDULER}
        return AsyncEngineArgs(
            model=self.model,
            max_num_seqs=self.max_num_seqs + _SPARE_SEQS,
            scheduling_policy="priority",  # for urgent scores; what has the same priority goes by its arrival
            tensor_parallel_size=self.tensor_parallel_size,
            seed=self.seed,
            logprobs_mode="processed_logprobs",  # the default ignores the temperature
            worker_extension_cls=_WORKER_EXTENSION,
            weight_transfer_config=WeightTransferConfig(backend=WEIGHT_BACKEND),
            disable_log_stats=True,  # vLLM's own; EngineGauges stays
            **{name: value for name, value in optional.items() if value is not None},
        )
