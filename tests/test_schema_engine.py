"""The table of keys against the DeepSpeed that is installed."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
from collections.abc import Iterator
from typing import Any

import pytest

from trimtab import schema
from trimtab.schema.table import table

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

# where in the file each pydantic model of the engine stands
ROOTS = {
    "zero_optimization": "deepspeed.runtime.zero.config:DeepSpeedZeroConfig",
    "fp16": "deepspeed.runtime.precision_config:DeepSpeedFP16Config",
    "bf16": "deepspeed.runtime.precision_config:DeepSpeedBF16Config",
    "comms_logger": "deepspeed.comm.config:CommsLoggerConfig",
    "tensorboard": "deepspeed.monitor.config:TensorBoardConfig",
    "wandb": "deepspeed.monitor.config:WandbConfig",
    "csv_monitor": "deepspeed.monitor.config:CSVConfig",
    "comet": "deepspeed.monitor.config:CometConfig",
    "hybrid_engine": "deepspeed.runtime.config:HybridEngineConfig",
    "compile": "deepspeed.compile.config:CompileConfig",
    "timers.throughput": "deepspeed.utils.config:DeepSpeedThroughputTimerConfig",
    "tensor_parallel": "deepspeed.runtime.tensor_parallel.config:TPTrainingConfig",
    "weight_quantization": "deepspeed.inference.config:WeightQuantConfig",
}
# read outside of DeepSpeedConfig, or only when other keys call for it
READ_ELSEWHERE = {"data_parallel_size", "allgather_size", "pipeline.use_reentrant", "sequence_parallel_size"}
SMALLEST = {"train_micro_batch_size_per_gpu": 1}


@pytest.fixture(scope="module")
def engine() -> Any:
    """The installed DeepSpeed, on the CPU, when it is the release that the table ends with."""
    try:
        installed = importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("DeepSpeed is not installed")
    newest = schema.known_versions()[-1]
    if installed != newest:
        pytest.skip(f"DeepSpeed {installed} is installed; the places of the models are those of {newest}")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed.runtime.config

    return deepspeed.runtime.config


@pytest.fixture(scope="module")
def keys(engine: Any) -> schema.Schema:
    return schema.load(importlib.metadata.version("deepspeed"))


class Watched(dict[str, Any]):
    """A block of a configuration that notes which keys are asked for."""

    def __init__(self, values: dict[str, Any], path: str, asked: set[str]) -> None:
        super().__init__({name: watched(value, join(path, name), asked) for name, value in values.items()})
        self.path, self.asked = path, asked

    def note(self, name: object) -> None:
        if isinstance(name, str):
            self.asked.add(join(self.path, name))

    def __getitem__(self, name: str) -> Any:
        self.note(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.note(name)
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.note(name)
        return super().get(name, default)

    def keys(self) -> Any:
        return KeysOf(self)

    def __copy__(self) -> Watched:
        return self


class KeysOf:
    """``block.keys()``, which DeepSpeed asks ``in``."""

    def __init__(self, block: Watched) -> None:
        self.block = block

    def __contains__(self, name: object) -> bool:
        return name in self.block

    def __iter__(self) -> Iterator[str]:
        return iter(self.block)


def watched(value: Any, path: str, asked: set[str]) -> Any:
    return Watched(value, path, asked) if isinstance(value, dict) else value


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def nested(path: str, value: Any) -> dict[str, Any]:
    """``{"a": {"b": value}}`` for ``a.b``, on top of the smallest configuration."""
    made: Any = value
    for part in reversed(path.split(".")):
        made = {part: made}
    return {**SMALLEST, **made}


def model_at(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def fields_below(path: str, model: Any) -> Iterator[tuple[str, str, Any, Any]]:
    """Path, other name, field and model of every field of a pydantic model and of the models within."""
    for name, field in model.model_fields.items():
        shown = field.alias or name
        yield join(path, shown), name, field, model
        for inner in inner_models(field.annotation):
            yield from fields_below(join(path, shown), inner)


def inner_models(annotation: Any) -> list[Any]:
    parts = [annotation, *getattr(annotation, "__args__", ())]
    return [part for part in parts if hasattr(part, "model_fields")]


def plain(value: Any) -> Any:
    """A default as the table writes it."""
    if isinstance(value, tuple):
        return list(value)
    if type(value).__module__ == "torch":
        return str(value)
    return getattr(value, "value", value)


@pytest.mark.parametrize("root", ROOTS)
def test_typed_blocks_are_the_engine_s_models(engine: Any, keys: schema.Schema, root: str) -> None:
    found = set()
    for path, name, field, model in fields_below(root, model_at(ROOTS[root])):
        found.add(path)
        key = keys.key(path)
        assert key is not None, path
        assert key.validated, path
        assert key.aliases == ((name,) if field.alias else ()), path
        assert keys.unknown_key_behaviour(key.parent) == "refused"
        assert model.model_config["extra"] == "forbid"
        if not inner_models(field.annotation):
            assert key.has_default, path
            assert key.default == plain(field.get_default(call_default_factory=True)), path
        extra = field.json_schema_extra or {}
        assert key.deprecated == extra.get("deprecated", False), path
        assert key.replacement == extra.get("new_param"), path
        bounds = {
            sign: getattr(mark, sign) for mark in field.metadata for sign in ("ge", "gt", "le", "lt")
            if getattr(mark, sign, None) is not None
        }  # fmt: skip
        by_program = {sign: limit for sign, limit in key.bounds.items() if sign not in key.by_hand}
        assert by_program == bounds, path
    known = {path for path in keys.paths() if path.startswith(root + ".")}
    assert known == found


def test_every_typed_key_stands_in_a_model(engine: Any, keys: schema.Schema) -> None:
    typed = {path for path in keys.paths() if (key := keys.key(path)) and key.validated}
    from_models = {path for root, place in ROOTS.items() for path, *_ in fields_below(root, model_at(place))}
    assert typed == from_models


def full_configuration(keys: schema.Schema) -> dict[str, Any]:
    """Every block switched on, so that the engine looks at everything it ever looks at."""
    made: dict[str, Any] = dict(SMALLEST)
    for path in keys.paths():
        key = keys.key(path)
        assert key is not None
        if key.types[0] != "object" or key.validated or path == "expert_parallel":
            continue
        at: Any = made
        for part in path.split("."):
            at = at.setdefault(part, {})
    made["optimizer"] = {"type": "AdamW", "params": {"lr": 1e-3}}
    made["scheduler"] = {"type": "WarmupLR", "params": {}}
    made["expert_parallel"] = {"enabled": False}
    made["data_efficiency"] = {
        "enabled": True,
        "data_sampling": {
            "enabled": True,
            "curriculum_learning": {"enabled": True, "curriculum_metrics": {}},
            "dynamic_batching": {"enabled": True, "max_tokens": 8},
        },
        "data_routing": {"enabled": True, "random_ltd": {"enabled": True}},
    }
    return made


def test_the_engine_asks_for_the_table_s_keys_and_no_others(engine: Any, keys: schema.Schema) -> None:
    asked: set[str] = set()
    engine.DeepSpeedConfig(Watched(full_configuration(keys), "", asked))
    canonical = {keys.canonical(path) for path in asked}
    refused = {path for path in asked if keys.behaviour(path) == "refused"}
    accepted = set(keys.paths())
    opaque = {path for path in canonical if keys.unknown_key_behaviour(path.rpartition(".")[0]) == "passed"}
    assert canonical - accepted - refused - opaque == set()
    looked_up = {path for path in accepted if not getattr(keys.key(path), "validated", True)}
    assert looked_up - canonical - READ_ELSEWHERE - merged_whole(keys) == set()


def merged_whole(keys: schema.Schema) -> set[str]:
    """Keys of blocks that the engine copies as they are, whose single keys it never asks for."""
    whole = ("pipeline", "data_efficiency.data_routing.random_ltd")
    return {path for path in keys.paths() if path.startswith(tuple(f"{block}." for block in whole))}


def test_what_becomes_of_an_unknown_key(engine: Any, keys: schema.Schema) -> None:
    for path in table()["sections"]:
        if path and keys.section(path) is None:
            continue
        policy = keys.unknown_key_behaviour(path)
        config = nested(join(path, "no_such_key"), 1)
        if policy == "refused":
            with pytest.raises(ValueError, match="no_such_key"):
                engine.DeepSpeedConfig(config)
        elif policy == "ignored":
            engine.DeepSpeedConfig(config)


def test_refused_keys_are_refused(engine: Any, keys: schema.Schema) -> None:
    refused = [path for path, entry in table()["keys"].items() if "refused" in entry]
    assert len(refused) == 15
    for path in refused:
        if not path.startswith(
            "optimizer."
        ):  # the engine refuses that one later, when it builds the optimizer
            with pytest.raises(engine.DeepSpeedConfigError):
                engine.DeepSpeedConfig(nested(path, {}))


def test_the_optimizers_are_the_engine_s(engine: Any, keys: schema.Schema) -> None:
    names = {component.name.lower() for component in keys.components("optimizer")}
    assert names == set(engine.DEEPSPEED_OPTIMIZERS)


def test_the_schedulers_are_the_engine_s(engine: Any, keys: schema.Schema) -> None:
    from deepspeed.runtime import lr_schedules

    for name in lr_schedules.VALID_LR_SCHEDULES:
        component = keys.component("scheduler", name)
        assert component is not None
        signature = inspect.signature(getattr(lr_schedules, name)).parameters
        own = {
            key: value for key, value in signature.items() if key not in ("optimizer", "last_batch_iteration")
        }
        assert set(component.params) == set(own)
        for key, parameter in component.params.items():
            assert parameter.required is (own[key].default is inspect.Parameter.empty)
            assert parameter.required or parameter.default == own[key].default


@pytest.mark.parametrize(
    ("name", "module", "offloaded"),
    [
        ("AdamW", "deepspeed.ops.adam:FusedAdam", False),
        ("AdamW", "deepspeed.ops.adam:DeepSpeedCPUAdam", True),
        ("Lion", "deepspeed.ops.lion:FusedLion", False),
        ("Lion", "deepspeed.ops.lion:DeepSpeedCPULion", True),
        ("Lamb", "deepspeed.ops.lamb:FusedLamb", False),
        ("Adagrad", "deepspeed.ops.adagrad:DeepSpeedCPUAdagrad", True),
        ("Adagrad", "torch.optim:Adagrad", False),
    ],
)
def test_an_optimizer_takes_its_parameters(
    engine: Any, keys: schema.Schema, name: str, module: str, offloaded: bool
) -> None:
    component = keys.component("optimizer", name)
    assert component is not None
    signature = set(inspect.signature(model_at(module)).parameters)
    taken_by_engine = {"torch_adam", "adam_w_mode", "fp32_optimizer_states", "foreach"}
    other = "no offload_optimizer" if offloaded else "offload_optimizer"
    for key, parameter in component.params.items():
        if parameter.only not in ("torch_adam", other) and key not in taken_by_engine:
            assert key in signature, key


def test_torch_adam_takes_its_parameters(engine: Any, keys: schema.Schema) -> None:
    import torch

    component = keys.component("optimizer", "AdamW")
    assert component is not None
    signature = set(inspect.signature(torch.optim.AdamW).parameters)
    assert {key for key, parameter in component.params.items() if parameter.only == "torch_adam"} <= signature


@pytest.mark.parametrize("wrong", [{"reduce_bucket_size": 0}, {"stage": 4}, {"sub_group_size": -1}])
def test_bounds_are_the_engine_s(engine: Any, keys: schema.Schema, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        engine.DeepSpeedConfig({**SMALLEST, "zero_optimization": wrong})
