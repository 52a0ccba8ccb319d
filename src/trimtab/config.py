"""A DeepSpeed configuration as a value: a typed view that keeps every key, known or not.

The names are DeepSpeed's own.  Defaults are those of DeepSpeed 0.19.8 with the file and line that sets them;
`trimtab.schema` knows them by version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.errors import RefusedConfig
from trimtab.frozen import dataclass
from trimtab.job import Job

BLOCK = "trimtab"
AUTO = "auto"

# runtime/zero/config.py of DeepSpeed 0.19.8, line beside each
ZERO_DEFAULTS: Mapping[str, Any] = {
    "stage": 0,  # 95
    "contiguous_gradients": True,  # 102
    "reduce_scatter": True,  # 108
    "reduce_bucket_size": 500_000_000,  # 113, elements
    "allgather_partitions": True,  # 126
    "allgather_bucket_size": 500_000_000,  # 132, elements
    "overlap_comm": None,  # 138: true at stage 3, else false (386)
    "sub_group_size": 1_000_000_000,  # 182, elements
    "stage3_prefetch_bucket_size": 50_000_000,  # 222, elements
    "stage3_param_persistence_threshold": 100_000,  # 228, elements
    "stage3_model_persistence_threshold": 2**63 - 1,  # 235, elements
    "stage3_max_live_parameters": 1_000_000_000,  # 245, elements
    "stage3_max_reuse_distance": 1_000_000_000,  # 251, elements
    "use_multi_rank_bucket_allreduce": True,  # 119
    "stage3_module_granularity_threshold": 0,  # 265, elements
    "stage3_use_all_reduce_for_fetch_params": False,  # 273
    "stage3_allgather_sequential": False,  # 279
    "round_robin_gradients": False,  # 309
    "zero_hpz_partition_size": 1,  # 324
    "zero_quantized_weights": False,  # 328
    "zero_quantized_gradients": False,  # 340
    "memory_efficient_linear": True,  # 346
}
# both spellings are accepted: runtime/zero/config.py:222-257
ZERO_ALIASES: Mapping[str, str] = {
    name.removeprefix("stage3_"): name for name in ZERO_DEFAULTS if name.startswith("stage3_")
}
# read by stage 3 alone: runtime/engine.py:2751-2795, runtime/zero/partition_parameters.py:1598
STAGE_3_ONLY = (
    *(name for name in ZERO_DEFAULTS if name.startswith("stage3_")),
    "stage3_gather_16bit_weights_on_model_save",
    "sub_group_size",
    "zero_hpz_partition_size",
    "zero_quantized_weights",
    "zero_quantized_nontrainable_weights",
    "zero_quantized_gradients",
    "leaf_module",
)
TYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
# DtypeEnum, runtime/config.py:144
TYPE_NAMES = {
    "bf16": ("bf16", "bfloat16", "torch.bfloat16"),
    "fp16": ("fp16", "float16", "half", "torch.float16"),
    "fp32": ("fp32", "float32", "float", "torch.float32"),
}
OFFLOAD_DEVICES = ("none", "cpu", "nvme")  # runtime/zero/offload_config.py:14
# what pydantic takes for a truth value
TRUTHS: Mapping[Any, bool] = {
    **dict.fromkeys((1, "1", "true", "t", "yes", "y", "on"), True),
    **dict.fromkeys((0, "0", "false", "f", "no", "n", "off"), False),
}
MOST_TRIED = 100_000
"""Micro batches among which one is looked for that goes with a train batch."""
GRADIENT_CLIPPING_DEFAULT = 1.0  # runtime/constants.py:198-203


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The batch identity solved: ``train = micro x accumulation x data-parallel ranks``."""

    train: int
    """Samples of one optimizer step, also where ``train_batch_size`` counts more (`Config.batch`)."""
    micro: int
    accumulation: int
    data_parallel: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One configuration: the mapping as read, the job it states, and a typed view of what DeepSpeed sees."""

    raw: Mapping[str, Any]
    name: str = "configuration"
    job: Job = Job()

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any], *, name: str = "configuration") -> Config:
        """The view of ``raw``; its ``"trimtab"`` block, if any, becomes the job.

        Raises:
            UsageError: the ``"trimtab"`` block holds something it cannot.
        """
        return cls(raw=raw, name=name, job=Job.from_block(raw.get(BLOCK), where=name))

    def get(self, path: str, default: Any = None) -> Any:
        """The value at a dotted ``path``; ``default`` where it is absent, null or ``"auto"``.

        Raises:
            RefusedConfig: a part of ``path`` that should be an object is none.
        """
        value: Any = self.raw
        keys = path.split(".")
        for place, key in enumerate(keys):
            if type(value) is not dict:  # which takes no time to ask
                if value is None or value == AUTO:
                    return default
                if not isinstance(value, Mapping):
                    section = ".".join(keys[:place])
                    if section == "zero_optimization" and isinstance(value, bool):  # deprecated, see `zero`
                        return default
                    raise RefusedConfig(f"{self.name}: {section} must be an object, not {value!r}")
            if key not in value:
                return default
            value = value[key]
        return default if value is None or value == AUTO else value

    def deepspeed(self) -> dict[str, Any]:
        """What goes to ``deepspeed.initialize``: a copy without the ``"trimtab"`` block."""
        import copy  # an answer needs none

        return {key: copy.deepcopy(value) for key, value in self.raw.items() if key != BLOCK}

    def with_values(self, changes: Mapping[str, Any]) -> Config:
        """A new configuration with the dotted paths of ``changes`` set; None removes a key."""
        raw = dict(self.raw)  # sections that do not change are the same
        for path, value in changes.items():
            *parents, last = path.split(".")
            place = raw
            for key in parents:
                section = place.get(key)
                place[key] = dict(section) if isinstance(section, dict) else {}
                place = place[key]
            if value is None:
                place.pop(last, None)
            else:
                place[last] = value
        return Config.from_mapping(raw, name=self.name)

    # -- precision ---------------------------------------------------------------------------------

    @property
    def precision(self) -> str:
        """``bf16``, ``fp16`` or ``fp32``: the dtype of the engine's parameters."""
        if self.get("bf16.enabled", self.get("bfloat16.enabled", False)):
            return "bf16"
        return "fp16" if self.get("fp16.enabled", False) else "fp32"

    @property
    def parameter_bytes(self) -> int:
        """Bytes of one parameter element as the engine computes with it."""
        return TYPE_BYTES[self.precision]

    @property
    def gradient_type(self) -> str:
        """The dtype in which gradients are accumulated (``data_types.grad_accum_dtype``; engine.py:1799)."""
        return self.type_at("data_types.grad_accum_dtype", self.precision)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of one accumulated gradient element."""
        return TYPE_BYTES[self.gradient_type]

    def type_at(self, path: str, default: str) -> str:
        """``bf16``, ``fp16`` or ``fp32`` at a dotted ``path``, in any of DeepSpeed's spellings.

        Raises:
            RefusedConfig: it is none of them.
        """
        name = str(self.get(path, default)).lower()
        found = next((short for short, names in TYPE_NAMES.items() if name in names), None)
        if found is None:
            raise RefusedConfig(f"{self.name}: {path} must be {', '.join(TYPE_BYTES)}, not {name!r}")
        return found

    # -- ZeRO ----------------------------------------------------------------------------------------

    def zero(self, key: str) -> Any:
        """A ``zero_optimization`` value with DeepSpeed's default; ``stage3_`` names in either spelling."""
        section = self.raw.get("zero_optimization")
        if isinstance(section, bool):  # deprecated: true means stage 1 (runtime/zero/config.py:60-75)
            return int(section) if key == "stage" else ZERO_DEFAULTS.get(key)
        short = key.removeprefix("stage3_")
        value = self.get(f"zero_optimization.{key}", self.get(f"zero_optimization.{short}"))
        default = ZERO_DEFAULTS.get(key)
        if value is None:
            return self.stage == 3 if key == "overlap_comm" else default
        if key == "overlap_comm" or isinstance(default, bool):
            return self._truth(f"zero_optimization.{key}", value)
        if key == "reduce_bucket_size" and value in (0, "0"):
            raise RefusedConfig(f"{self.name}: zero_optimization.{key} must be above 0")
        return value if default is None else self._whole(f"zero_optimization.{key}", value)

    @property
    def stage(self) -> int:
        """ZeRO stage, 0 to 3."""
        stage = int(self.zero("stage"))
        if stage > 3:
            raise RefusedConfig(f"{self.name}: zero_optimization.stage must be 0, 1, 2 or 3, not {stage}")
        return stage

    @property
    def offload_optimizer(self) -> str:
        """``none``, ``cpu`` or ``nvme``, as the engine really does it at this stage.

        Below stage 3 ``nvme`` becomes the host's memory (stage_1_and_2.py:220).
        """
        device = self._device("zero_optimization.offload_optimizer.device")
        if self.get("zero_optimization.cpu_offload", False) and device == "none":
            device = "cpu"
        return "cpu" if device == "nvme" and self.stage < 3 else device

    @property
    def offload_param(self) -> str:
        """``none``, ``cpu`` or ``nvme``; below stage 3 the engine ignores the block (engine.py:2773)."""
        device = self._device("zero_optimization.offload_param.device")
        return device if self.stage == 3 else "none"

    def whole(self, path: str, default: int) -> int:
        """The whole number from 0 on at a dotted ``path``.

        Raises:
            RefusedConfig: it is none.
        """
        return self._whole(path, self.get(path, default))

    def _device(self, path: str) -> str:
        device = self.get(path, "none")
        if device not in OFFLOAD_DEVICES:
            raise RefusedConfig(f"{self.name}: {path} must be {', '.join(OFFLOAD_DEVICES)}, not {device!r}")
        return str(device)

    def _truth(self, path: str, value: Any) -> bool:
        """``value`` as pydantic reads a truth value."""
        found = TRUTHS.get(value.lower() if isinstance(value, str) else value if value in (0, 1) else None)
        if found is None:
            raise RefusedConfig(f"{self.name}: {path} must be true or false, not {value!r}")
        return found

    def _whole(self, path: str, value: Any) -> int:
        """``value`` as pydantic reads a whole number from 0 on: also of a float or a text."""
        try:
            if isinstance(value, bool) or int(value) != float(value) or float(value) < 0:
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise RefusedConfig(f"{self.name}: {path} must be a whole number, not {value!r}") from None
        return int(value)

    # -- batch -----------------------------------------------------------------------------------------

    @property
    def data_parallel_divisor(self) -> int:
        """Ranks that share one data-parallel replica (sequence and tensor parallelism, pipeline stages)."""
        return self.sequence_parallel * self.tensor_parallel * self.job.pipeline_stages

    @property
    def sequence_parallel(self) -> int:
        """Ranks over which Ulysses spreads the tokens of every sample; 1 without it."""
        return self._count("sequence_parallel_size") or 1

    @property
    def tensor_parallel(self) -> int:
        """Ranks over which AutoTP splits every layer; 1 without it."""
        return self.whole("tensor_parallel.autotp_size", 0) or 1

    def batch(self, world_size: int) -> Batch:
        """The batch for ``world_size`` ranks, by DeepSpeed's rules (runtime/config.py:590-656).

        Of AutoTP those know nothing (:455-475): ``train_batch_size`` counts each rank of a tensor-parallel
        group, though they share their samples.

        Raises:
            RefusedConfig: the three keys and the world do not agree, or none is given.
        """
        replicas = max(1, world_size // self.data_parallel_divisor)
        ranks = replicas * self.tensor_parallel
        train = self._count("train_batch_size")
        micro = self._count("train_micro_batch_size_per_gpu")
        accumulation = self._count("gradient_accumulation_steps")
        if train is None and micro is None:
            raise RefusedConfig(
                f"{self.name}: neither train_batch_size nor train_micro_batch_size_per_gpu is given; "
                "set train_micro_batch_size_per_gpu"
            )
        if train is None:
            assert micro is not None
            accumulation = accumulation or 1
            train = micro * accumulation * ranks
        elif micro is None:
            accumulation = accumulation or 1
            micro = train // ranks // accumulation
        elif accumulation is None:
            accumulation = train // ranks // micro
        if train != micro * accumulation * ranks or min(train, micro, accumulation) < 1:
            raise RefusedConfig(
                f"{self.name}: train_batch_size is {train} but {micro} (train_micro_batch_size_per_gpu) x "
                f"{accumulation} (gradient_accumulation_steps) x {ranks} (data-parallel ranks"
                f"{', to which the engine counts tensor-parallel ones' * (ranks > replicas)}) = "
                f"{micro * accumulation * ranks}. {self._batch_cure(train, micro, ranks)}"
            )
        samples = micro * accumulation * replicas
        return Batch(train=samples, micro=micro, accumulation=accumulation, data_parallel=replicas)

    def _count(self, key: str) -> int | None:
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RefusedConfig(f"{self.name}: {key} must be a whole number above 0, not {value!r}")
        return value

    @staticmethod
    def _batch_cure(train: int, micro: int, ranks: int) -> str:
        step = max(micro, 1) * ranks
        below, above = train // step * step, -(-train // step) * step
        sizes = " or ".join(str(size) for size in dict.fromkeys((below, above)) if size)
        cure = f"Set train_batch_size to {sizes}"
        fitting = [
            size for size in range(1, min(train // ranks, MOST_TRIED) + 1) if train % (size * ranks) == 0
        ]
        if fitting:
            best = min(fitting, key=lambda size: (abs(size - micro), -size))
            cure += (
                f", or keep it and set train_micro_batch_size_per_gpu to {best} "
                f"with gradient_accumulation_steps {train // ranks // best}"
            )
        return cure + "."

    # -- optimizer ---------------------------------------------------------------------------------------

    @property
    def optimizer_type(self) -> str | None:
        """The optimizer's name as the engine reads it: its own in lower case (runtime/config.py:519)."""
        name = self.get("optimizer.type")
        if name is None:
            return None
        return str(name).lower() if str(name).lower() in DEEPSPEED_OPTIMIZERS else str(name)

    @property
    def optimizer_params(self) -> Mapping[str, Any]:
        """``optimizer.params`` less what is ``"auto"``; empty if absent."""
        params = self.get("optimizer.params", {})
        if not isinstance(params, Mapping):
            raise RefusedConfig(f"{self.name}: optimizer.params must be an object, not {params!r}")
        return {key: value for key, value in params.items() if value != AUTO}


DEEPSPEED_OPTIMIZERS = frozenset(  # runtime/config.py:52-66
    ("adagrad", "adam", "adamw", "lamb", "lion", "muadam", "muadamw", "musgd", "muon")
)
# what ZeRO knows how to shard: runtime/zero/utils.py:45-48
ZERO_OPTIMIZERS = frozenset(("adam", "adamw", "adagrad", "lion", "muon"))
# what steps on the host by DeepSpeed's own code: runtime/engine.py:2381-2400, 2498-2510
HOST_OPTIMIZERS = frozenset(("adam", "adamw", "adagrad", "lion", "muon"))


def fit_world(config: Config, world: int) -> tuple[Config, tuple[str, ...]]:
    """``config`` for ``world`` ranks: the global and the micro batch kept, the accumulation following.

    Raises:
        RefusedConfig: the global batch cannot be split into the micro batch over that many ranks.
    """
    train, micro = config.get("train_batch_size"), config.get("train_micro_batch_size_per_gpu")
    stated = config.get("gradient_accumulation_steps")
    ranks = max(1, world // config.data_parallel_divisor) * config.tensor_parallel
    whole = isinstance(train, int) and isinstance(micro, int) and isinstance(stated, int)
    if whole and train != micro * stated * ranks and train % (micro * ranks) == 0:
        accumulation = train // (micro * ranks)
        note = (
            f"{world} rank{'s' * (world > 1)}: gradient_accumulation_steps {stated} becomes {accumulation}, "
            f"which keeps train_batch_size at {train}"
        )
        config = config.with_values({"gradient_accumulation_steps": accumulation})
        config.batch(world)
        return config, (note,)
    config.batch(world)
    return config, ()
