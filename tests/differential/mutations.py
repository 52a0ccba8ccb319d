"""Configurations made from the catalogue's by the schema: values of every type, misspelt and moved keys."""

from __future__ import annotations

import copy
import random
import string
from collections.abc import Callable, Iterator
from typing import Any

from trimtab import catalogue, schema
from trimtab.schema import Key, Schema

Config = dict[str, Any]
NONSENSE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 0.0, 0.5, 1.0, 2.0, 1e9, 2**62, "", "auto", "true", "off", "1", "2.0",
    "x",
    [], [1], ["a"], {}, {"enabled": True}, {"a": 1},
)  # fmt: skip
WORLDS = (1, 2, 3, 8, 16, 32)
# without CUDA the engine refuses this one, whatever else the file says
NOT_ON_A_CPU = ("aio.use_gds",)


def mutants(count: int, *, seed: int, version: str) -> Iterator[tuple[int, Config]]:
    """``count`` configurations with the number of GPUs to judge them by."""
    chance = random.Random(seed)
    known = schema.load(version)
    originals = [
        (catalogue.card(name).hardware.world_size, catalogue.load_config(name).deepspeed())
        for name in catalogue.names()
    ]
    for _ in range(count):
        world, original = chance.choice(originals)
        config = copy.deepcopy(original)
        for _ in range(chance.choice((1, 1, 1, 1, 2, 2, 3))):
            chance.choice(MUTATIONS)(chance, known, config)
        if chance.random() < 0.1:
            world = chance.choice(WORLDS)
        yield world, config


def any_key(chance: random.Random, known: Schema) -> Key:
    paths = [path for path in known.paths() if path not in NOT_ON_A_CPU]
    key = known.key(chance.choice(paths))
    assert key is not None
    return key


def put(config: Config, path: str, value: Any) -> None:
    *above, last = path.split(".")
    place: Any = config
    for part in above:
        if not isinstance(place.get(part), dict):
            place[part] = {}
        place = place[part]
    place[last] = copy.deepcopy(value)


def blocks(config: Config) -> list[Config]:
    found = [config]
    for value in config.values():
        if isinstance(value, dict):
            found += blocks(value)
    return found


def value_for(chance: random.Random, key: Key) -> Any:
    """A value that the key's description allows, more or less."""
    options: list[Any] = [key.default] if key.has_default else []
    options += list(key.choices)
    kinds: dict[str, list[Any]] = {
        "boolean": [True, False, "true", 1, "off"],
        "integer": [0, 1, 2, 3, 64, 100_000_000, 5e8, "4", -1, 2.5],
        "number": [0, 0.1, 1, 1.5, 3, "0.5", -2],
        "string": ["cpu", "fp16", "BF16", "x"],
        "array": [[], ["a"], ["z3"]],
        "object": [{}, {"enabled": True}, {"enabled": False}],
        "null": [None],
        "any": [1, "x"],
    }
    for name in key.types:
        options += kinds[name]
    options += [limit + step for limit in key.bounds.values() for step in (-1, 0, 1)]
    return chance.choice(options)


def set_a_key(chance: random.Random, known: Schema, config: Config) -> None:
    key = any_key(chance, known)
    name = chance.choice([key.name, key.name, *key.aliases])
    put(config, f"{key.parent}.{name}" if key.parent else name, value_for(chance, key))


def set_nonsense(chance: random.Random, known: Schema, config: Config) -> None:
    put(config, any_key(chance, known).path, chance.choice(NONSENSE))


def set_a_batch_key(chance: random.Random, known: Schema, config: Config) -> None:
    name = chance.choice(
        ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    )
    config[name] = chance.choice((1, 2, 4, 8, 12, 16, 64, 128, 256, 512, 1024, 100, *NONSENSE))


def set_a_stage(chance: random.Random, known: Schema, config: Config) -> None:
    put(config, "zero_optimization.stage", chance.choice((0, 1, 2, 3, 3, "2", 4, True)))


def set_precision(chance: random.Random, known: Schema, config: Config) -> None:
    for mode in ("fp16", "bf16", chance.choice(("bfloat16", "fp16"))):
        put(config, f"{mode}.enabled", chance.choice((True, False)))
    for path in ("bf16.bf16_master_weights_and_grads", "bf16.bf16_optimizer_states"):
        if chance.random() < 0.3:
            put(config, path, True)


def misspell(chance: random.Random, known: Schema, config: Config) -> None:
    block = chance.choice(blocks(config))
    if block:
        name = chance.choice(list(block))
        at = chance.randrange(len(name))
        block[name[:at] + chance.choice(string.ascii_lowercase) + name[at + 1 :]] = block.pop(name)


def move(chance: random.Random, known: Schema, config: Config) -> None:
    block = chance.choice(blocks(config))
    if block:
        name = chance.choice(list(block))
        value = block.pop(name)
        chance.choice(blocks(config))[name] = value


def remove(chance: random.Random, known: Schema, config: Config) -> None:
    block = chance.choice(blocks(config))
    if block:
        block.pop(chance.choice(list(block)))


def spoil_a_value(chance: random.Random, known: Schema, config: Config) -> None:
    block = chance.choice(blocks(config))
    if block:
        block[chance.choice(list(block))] = copy.deepcopy(chance.choice(NONSENSE))


def bring_back(chance: random.Random, known: Schema, config: Config) -> None:
    """A key that some release knew and this one may not."""
    table = schema.table.table()["keys"]
    gone = [path for path in table if known.key(path) is None]
    put(config, chance.choice(gone), chance.choice(({}, {"enabled": False}, False, 1)))


def set_a_combination(chance: random.Random, known: Schema, config: Config) -> None:
    path, values = chance.choice((
        ("gradient_allreduce_op", ("sum", "SUM", "mean", "max")),
        ("zero_optimization.compute_grad_norm", (False, "no")),
        ("zero_optimization.offload_optimizer.ratio", (0.5, 0, 1.0, "0.3")),
        ("zero_optimization.zenflow", ({}, {"topk_ratio": 0.2}, None)),
        ("zero_optimization.cpu_offload", (True, False)),
        ("zero_optimization.stage3_gather_fp16_weights_on_model_save", (True, False)),
        ("compile.deepcompile", (True, False)),
        ("zero_optimization", (True, False, None, {})),
        ("sequence_parallel_size", (1, 2, 3, 0, "2", 1.5)),
        ("expert_parallel", ({"load_balance_coeff": 0.1}, {"load_balance_coeff": None}, {}, None)),
        ("data_efficiency.data_sampling.curriculum_learning", ({"enabled": True},
        {"curriculum_metrics": {}})),
        ("data_efficiency.data_sampling.dynamic_batching", ({"enabled": True}, {"max_tokens": 5})),
        ("data_efficiency.data_routing.random_ltd", ({"enabled": True}, {})),
        ("fp16.loss_scale_window", (0, 1000, "0", 0.5)),
    ))  # fmt: skip
    put(config, path, chance.choice(values))


Mutation = Callable[[random.Random, Schema, Config], None]
MUTATIONS: tuple[Mutation, ...] = (
    set_a_key, set_a_key, set_a_key, set_nonsense, set_a_batch_key, set_a_stage, set_precision, misspell,
    move,
    remove, spoil_a_value, bring_back, set_a_combination,
)  # fmt: skip
