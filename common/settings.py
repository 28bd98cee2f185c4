"""The run file: everything that is read once at start. What may change while the run goes on is in its [live] table.

Relative paths are relative to the run file. $REDIS_URL overrides [redis] url, $TRIBUTARY_MAX_STEPS (a number, or "none"
for no limit) overrides [learner] max_steps; secrets come from the environment only.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, ValidationError, model_validator

from common.config.base import Frozen
from common.config.live import LiveConfig, parse_live
from common.errors import ConfigRejected, SettingsError

MAX_STEPS_VARIABLE = "TRIBUTARY_MAX_STEPS"


class RunSettings(Frozen):
    """Name and place of the run."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$", description="lower-case name, used in Redis and for files"
    )
    directory: Path = Field(description="where logs, checkpoints, weights and Redis data lie")
    seed: int = Field(default=0, ge=0, description="seed of data order and sampling of prompts")


class ModelSettings(Frozen):
    """The policy."""

    path: str = Field(description="a Hugging Face model directory, or a hub name")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: float32 on CPU, else bfloat16"
    )
    max_model_len: int | None = Field(
        default=None, ge=8, description="longest prompt plus response; null: the model's own"
    )


class Columns(Frozen):
    """Which columns of the data set hold what."""

    prompt: str = "prompt"
    answer: str = "answer"
    demonstration: str | None = Field(default="demonstration", description="null: the data set has none")
    expert_logprobs: str | None = Field(
        default=None, description="log π_φ of every token of each demonstration, its end token included"
    )
    expert_tokens: str | None = Field(
        default=None, description="the ids those log-probs belong to: they must be what the demonstration becomes here"
    )


class DatasetSettings(Frozen):
    """A data set: a JSONL or Parquet file (or glob), or a hub name."""

    path: str
    split: str = "train"
    limit: int | None = Field(default=None, ge=1, description="use only the first rows")
    columns: Columns = Columns()


class DataSettings(DatasetSettings):
    """The training prompts, and how text becomes tokens."""

    template: str = Field(default="{prompt}", description="text around the prompt; {prompt} is replaced")
    chat_template: bool = Field(default=False, description="wrap the prompt with the tokenizer's chat template")
    step_separator: str = Field(default="\n", min_length=1, description="text that ends a step of a demonstration")
    shuffle: bool = True


class HeldoutSettings(DatasetSettings):
    """A held-out set that is evaluated and never trained on."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")


class EvaluationSettings(Frozen):
    """When and how held-out sets are evaluated."""

    every_versions: int = Field(default=10, ge=1, description="weight versions between two evaluations")
    samples: int = Field(default=0, ge=0, le=1024, description="k of pass@k; 0 evaluates the greedy response only")
    nll: bool = Field(default=False, description="also score the demonstrations of the held-out set")
    sets: tuple[HeldoutSettings, ...] = ()


class GraderSettings(Frozen):
    """How a response is graded: a grader of services/generator/graders, or `module:function`."""

    name: str = "marker"
    options: dict[str, Any] = Field(default_factory=dict)
    workers: int = Field(default=1, ge=1, le=256, description="grader processes per generator")
    timeout_s: float = Field(default=10.0, gt=0, description="a grader that takes longer is killed")


class RedisSettings(Frozen):
    """Where Redis is. Without a URL `tributary up` starts one for the run."""

    url: str | None = None


class ExpertSettings(Frozen):
    """Where the expert policy π_φ, the denominator of an expert token's ratio, comes from.

    unit: π_φ = 1 (LUFFY, SRFT). recorded: data.columns.expert_logprobs. scored: `model` scores every demonstration.
    """

    policy: Literal["unit", "recorded", "scored"] = "unit"
    model: str | None = Field(default=None, description="the expert's model directory or hub name (scored)")
    max_num_seqs: int = Field(default=64, ge=1, description="demonstrations scored at the same time")
    kv_cache_mb: int | None = Field(default=None, ge=16, description="KV cache; null: 256 on CPU, vLLM's choice on GPU")
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    tensor_parallel_size: int = Field(default=1, ge=1)
    threads: int | None = Field(default=None, ge=1, description="CPU threads of the engine; null: 1")


class WeightSettings(Frozen):
    """The weight store, and how weights come to the generators."""

    directory: Path | None = Field(default=None, description="shared directory; null: weights/ in the run directory")
    url: str | None = Field(
        default=None,
        pattern=r"^[a-z][a-z0-9+]*://.+$",
        description="null: the directory. http(s)://…: generators fetch what the learner serves of its directory. "
        "s3://… or any other fsspec URL: published there",
    )
    keep: int = Field(default=2, ge=1, description="newest anchors kept in the store, with all that came after them")
    anchor_every: int = Field(default=50, ge=1, description="versions from one anchor to the next at most")
    cache: Path | None = Field(
        default=None, description="where generators keep what they fetch; null: weights-cache/ in the run directory"
    )
    cache_mb: int = Field(
        default=50_000, ge=1, description="size of a generator's cache; what it needs now always fits"
    )
    serve_host: str = Field(
        default="127.0.0.1", description="where the learner serves its directory; wider than loopback with a token only"
    )
    serve_port: int | None = Field(default=None, ge=0, le=65535, description="null: it does not; 0: any free port")
    transfer: Literal["store", "nccl"] = Field(
        default="store",
        description="how a version reaches the engines. nccl: broadcast from the learner's GPU to those of `members`; "
        "from the store as well whenever one of them is missing",
    )
    members: tuple[str, ...] = Field(default=(), description="names of the generators of the broadcast (nccl)")
    muster_s: float = Field(default=5.0, gt=0, le=600, description="how long all members are waited for (nccl)")
    broadcast_s: float = Field(default=60.0, gt=0, le=3600, description="how long a broadcast may take (nccl)")


class CheckpointSettings(Frozen):
    """The learner's checkpoints."""

    directory: Path | None = Field(default=None, description="null: checkpoints/ in the run directory")
    every_steps: int = Field(default=10, ge=1)
    keep: int = Field(default=2, ge=1)
    unacknowledged_mb: int = Field(default=256, ge=1, description="a checkpoint falls due when more trained data waits")


class ControlSettings(Frozen):
    """The control plane. It listens on loopback unless told otherwise."""

    host: str = "127.0.0.1"
    port: int = Field(default=8700, ge=0, le=65535, description="0: any free port")
    tokens_file: Path | None = Field(default=None, description="lines of `name role token`; role: read or operate")
    reads_per_s: float = Field(default=500, ge=0, description="calls of one client that read; 0: no limit")
    writes_per_s: float = Field(default=50, ge=0, description="calls of one client that change something; 0: no limit")


class GeneratorSettings(Frozen):
    """The generators and their engine."""

    count: int = Field(default=1, ge=0, le=64, description="generators that `tributary up` starts")
    max_num_seqs: int = Field(default=64, ge=1, description="sequences sampled at the same time")
    kv_cache_mb: int | None = Field(default=None, ge=16, description="KV cache; null: 256 on CPU, vLLM's choice on GPU")
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    tensor_parallel_size: int = Field(default=1, ge=1)
    threads: int | None = Field(default=None, ge=1, description="CPU threads of the engine; null: 1")
    requests_in_flight: int = Field(default=8, ge=1, description="requests that a generator works on at the same time")
    reclaim_after_s: float = Field(
        default=10.0, gt=0, description="a silent generator's requests are taken over after this"
    )
    drain_s: float = Field(
        default=3.0, ge=0, description="told to stop, it finishes what it can for so long; others take the rest over"
    )
    clear_cache_on_update: bool = Field(
        default=True, description="recompute the KV cache of running requests on an update"
    )


class TrackerSettings(Frozen):
    """Where the record of the run is written beside its own event log."""

    tensorboard: bool = Field(default=True, description="event files in tensorboard/ in the run directory")
    wandb_project: str | None = Field(default=None, min_length=1, description="a Weights & Biases project; null: none")


class LearnerSettings(Frozen):
    """The learner."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_steps: int | None = Field(default=None, ge=1, description="stop after this step; null: run until stopped")
    micro_batch_tokens: int = Field(default=8192, ge=16, description="tokens of one forward pass")
    layout: Literal["auto", "rows", "packed"] = Field(
        default="auto", description="rows: padded, of like length. packed: one after another. auto: packed on a GPU"
    )
    shared_prompts: bool = Field(
        default=True, description="compute a long prompt once for its whole group where that saves a third or more"
    )
    activation_checkpointing: bool = Field(
        default=False, description="keep the input of each layer only and compute the rest again: less memory, slower"
    )
    compile: bool = Field(default=False, description="compile each layer with torch.compile")
    head: Literal["chunked", "fused"] = Field(
        default="chunked", description="how log-probs are computed; fused: Triton kernels, on a GPU"
    )
    processes: int = Field(
        default=1, ge=1, le=1024, description="processes that `tributary up` shares the model among, one a GPU"
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads; null: 1")
    examined_groups: int = Field(default=2, ge=0, le=64, description="groups of a step that operators can look into")


class RunFile(Frozen):
    """A run, whole. `live` is only the first revision: afterwards the control plane's is in force."""

    run: RunSettings
    model: ModelSettings
    data: DataSettings
    evaluation: EvaluationSettings = EvaluationSettings()
    grader: GraderSettings = GraderSettings()
    expert: ExpertSettings = ExpertSettings()
    redis: RedisSettings = RedisSettings()
    weights: WeightSettings = WeightSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    control: ControlSettings = ControlSettings()
    generator: GeneratorSettings = GeneratorSettings()
    learner: LearnerSettings = LearnerSettings()
    trackers: TrackerSettings = TrackerSettings()
    live: LiveConfig = LiveConfig()

    @model_validator(mode="after")
    def _expert_is_named(self) -> RunFile:
        if self.expert.policy == "recorded" and self.data.columns.expert_logprobs is None:
            raise ValueError(
                'expert.policy is "recorded": name the column of the log-probs in [data.columns] expert_logprobs'
            )
        if self.expert.policy == "scored" and self.expert.model is None:
            raise ValueError('expert.policy is "scored": name the model that scores demonstrations in [expert] model')
        return self

    @property
    def redis_url(self) -> str:
        """Where Redis is: the environment first, then the run file."""
        url = os.environ.get("REDIS_URL") or self.redis.url
        if not url:
            raise SettingsError("no Redis is named: set REDIS_URL or [redis] url, or start the run with `tributary up`")
        return url

    @property
    def weights_directory(self) -> Path:
        """Where weight versions are published."""
        return self.weights.directory or self.run.directory / "weights"

    @property
    def weights_cache(self) -> Path:
        """Where generators keep what they fetch, each in a directory of its own."""
        return self.weights.cache or self.run.directory / "weights-cache"

    @property
    def checkpoints_directory(self) -> Path:
        """Where the learner's checkpoints lie."""
        return self.checkpoints.directory or self.run.directory / "checkpoints"


def load_run(path: Path) -> RunFile:
    """The run that a TOML file describes; SettingsError names file, key and remedy."""
    try:
        return _with_max_steps(_resolve(_read(path), path.resolve().parent))
    except RecursionError as error:
        raise SettingsError(f"{path} is nested too deeply to be read: a run file has a few levels only") from error


def _read(path: Path) -> RunFile:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the run file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
    live = document.get("live", {})
    _expand(document)
    try:
        parse_live(live)
        return RunFile.model_validate(document)
    except ConfigRejected as error:
        raise SettingsError(f"{path}: [live] {error}") from error
    except ValidationError as error:
        raise SettingsError(f"{path}: " + "; ".join(_problem(e) for e in error.errors(include_url=False))) from error


def _problem(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{where}: this key is not known: remove it, or check its spelling"
    if error["type"] == "missing":
        return f"{where}: it is missing: add it"
    if not where:
        return str(error["ctx"]["error"])
    if error["loc"][-1] == "url":  # it may hold a password
        return f"{where}: {error['msg']}"
    return f"{where}: {error['msg']} (it is {error['input']!r})"


def _expand(table: Any) -> None:
    """Replace ${NAME} by the environment's value in every string, in place. An unset name is an error."""
    items: Any = cast(dict[str, Any], table).items() if isinstance(table, dict) else enumerate(table)
    for key, value in items:
        if isinstance(value, str):
            table[key] = re.sub(r"\$\{(\w+)\}", lambda m: _variable(m[1]), value)
        elif isinstance(value, dict | list):
            _expand(value)


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise SettingsError(f"the run file uses ${{{name}}}, which is not set: export {name}=...")
    return value


def _with_max_steps(settings: RunFile) -> RunFile:
    """The run with the last step that the environment names, if it names one."""
    asked = os.environ.get(MAX_STEPS_VARIABLE)
    if not asked:
        return settings
    if asked != "none" and not re.fullmatch("[1-9][0-9]{0,17}", asked):
        raise SettingsError(
            f'{MAX_STEPS_VARIABLE} is {asked!r}: set it to a number of steps, or to "none", or unset it'
        )
    max_steps = None if asked == "none" else int(asked)
    return settings.model_copy(update={"learner": settings.learner.model_copy(update={"max_steps": max_steps})})


def _at_home(path: Path) -> Path:
    """The path with a leading ~ replaced."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise SettingsError(f"{path} is in the home directory of nobody here: write the path out") from error


def _resolve(settings: RunFile, home: Path) -> RunFile:
    """The run with every path made absolute, relative ones being relative to the run file's directory."""

    def absolute(path: Path | None) -> Path | None:
        return None if path is None else (home / _at_home(path)).resolve()

    def located(name: str) -> str:
        """A local path if there is one, or if it can only be meant as one; else a hub name, left as it is."""
        local = home / _at_home(Path(name))
        is_path = name.startswith((".", "/", "~")) or Path(name).suffix in (".jsonl", ".json", ".parquet")
        return str(local.resolve()) if is_path or local.exists() else name

    sets = tuple(s.model_copy(update={"path": located(s.path)}) for s in settings.evaluation.sets)
    return settings.model_copy(
        update={
            "run": settings.run.model_copy(update={"directory": absolute(settings.run.directory)}),
            "model": settings.model.model_copy(update={"path": located(settings.model.path)}),
            "expert": settings.expert.model_copy(
                update={"model": located(settings.expert.model) if settings.expert.model else None}
            ),
            "data": settings.data.model_copy(update={"path": located(settings.data.path)}),
            "evaluation": settings.evaluation.model_copy(update={"sets": sets}),
            "weights": settings.weights.model_copy(
                update={
                    "directory": absolute(settings.weights.directory),
                    "cache": absolute(settings.weights.cache),
                }
            ),
            "control": settings.control.model_copy(update={"tokens_file": absolute(settings.control.tokens_file)}),
            "checkpoints": settings.checkpoints.model_copy(
                update={"directory": absolute(settings.checkpoints.directory)}
            ),
        }
    )
