"""The table of keys by release, and what is read from it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from trimtab import schema
from trimtab.errors import NotFound, UsageError
from trimtab.schema.table import order, table

NEWEST = "0.19.8"


@pytest.fixture
def newest() -> schema.Schema:
    return schema.load(NEWEST)


# ---- versions


def test_every_release_since_the_oldest_is_known() -> None:
    versions = schema.known_versions()
    assert versions[0] == "0.10.3"
    assert {"0.12.6", "0.14.5", "0.15.4", "0.16.9", "0.17.6", "0.18.9", "0.19.7", NEWEST} <= set(versions)
    assert list(versions) == sorted(versions, key=order)


@pytest.mark.parametrize(
    ("asked", "name", "exact"),
    [
        ("0.18.9", "0.18.9", True),
        ("v0.18.9+cu124", "0.18.9", True),
        ("0.13", "0.13.0", True),
        ("0.12.99", "0.12.6", False),
        ("99.1.0", None, False),
        ("0.3.1", "0.10.3", False),
    ],
)
def test_resolve_version(asked: str, name: str | None, exact: bool) -> None:
    found = schema.resolve_version(asked)
    assert found.name == (name or schema.known_versions()[-1])
    assert found.exact is exact
    assert found.asked == asked
    assert (found.problem is None) is exact


def test_no_version_means_the_newest() -> None:
    assert schema.load().version.name == schema.known_versions()[-1]


@pytest.mark.parametrize("text", ["", "new", "0.x", "1.2.²", "0." + "9" * 5000])
def test_a_version_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="is not a DeepSpeed version"):
        schema.resolve_version(text)


# ---- one key by release


@pytest.mark.parametrize(
    ("path", "before", "since", "value_before", "value_since"),
    [
        ("gradient_clipping", "0.19.2", "0.19.3", 0.0, 1.0),
        ("zero_optimization.offload_optimizer.pin_memory", "0.19.4", "0.19.5", False, True),
        ("zero_optimization.offload_param.pin_memory", "0.19.4", "0.19.5", False, True),
        ("bf16.check_grad_overflow", "0.19.2", "0.19.3", False, True),
        ("steps_per_print", "0.15.1", "0.15.2", 10, None),
    ],
)
def test_defaults_changed(
    path: str, before: str, since: str, value_before: object, value_since: object
) -> None:
    old, new = schema.load(before).key(path), schema.load(since).key(path)
    assert old is not None
    assert new is not None
    assert (old.default, new.default) == (value_before, value_since)
    assert new.defaults[-1] == schema.Default(since=since, value=value_since)
    assert old.defaults == new.defaults


def test_one_bit_adam_left_in_0_19_7() -> None:
    for version in ("0.10.3", "0.18.9", "0.19.6"):
        found = schema.load(version).component("optimizer", "OneBitAdam")
        assert found is not None
        assert found.params["freeze_step"].default == 100_000
    for version in ("0.19.7", NEWEST):
        assert schema.load(version).component("optimizer", "OneBitAdam") is None
    gone = schema.load(NEWEST).component_any_version("optimizer", "onebitadam")
    assert gone is not None
    assert gone.removed == "0.19.7"
    assert gone.params["freeze_step"].removed == "0.19.7"


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        ("nebula", "0.19.7"),
        ("compression_training", "0.19.7"),
        ("sparse_attention", "0.19.7"),
        ("zero_optimization.mics_shard_size", "0.19.7"),
        ("amp", "0.19.8"),
        ("elasticity", "0.19.8"),
        ("sparse_gradients", "0.19.8"),
        ("curriculum_learning", "0.19.8"),
        ("progressive_layer_drop", "0.19.8"),
        ("zero_optimization.zeropp_loco_param", "0.19.8"),
    ],
)
def test_removed_keys_are_refused_from_one_release_on(path: str, refused: str) -> None:
    versions = schema.known_versions()
    before = schema.load(versions[versions.index(refused) - 1])
    after = schema.load(refused)
    assert before.key(path) is not None
    assert before.behaviour(path) == "read"
    assert after.key(path) is None
    assert after.behaviour(path) == "refused"
    assert after.behaviour(path + ".enabled") == "refused"
    known = after.any_version(path)
    assert known is not None
    assert (known.removed, known.refused_since) == (refused, refused)


def test_a_section_that_went_and_came_back() -> None:
    assert schema.load("0.14.3").key("compile.backend") is not None
    assert schema.load("0.14.4").key("compile") is None
    assert schema.load("0.16.6").key("compile.deepcompile") is not None


def test_a_key_to_come_is_not_accepted_yet() -> None:
    early = schema.load("0.16.0")
    assert early.key("zero_optimization.zenflow") is None
    assert early.behaviour("zero_optimization.zenflow") == "refused"
    coming = early.any_version("zero_optimization.zenflow.topk_ratio")
    assert coming is not None
    assert coming.since == "0.17.5"
    assert coming.bounds == {"gt": 0.0, "lt": 1.0}
    then = schema.load("0.17.5").key("zero_optimization.zenflow.topk_ratio")
    assert then is not None
    assert then.bounds == {"ge": 0.0, "le": 1.0}


def test_what_a_key_says(newest: schema.Schema) -> None:
    key = newest.key("zero_optimization.stage3_prefetch_bucket_size")
    assert key is not None
    assert (key.default, key.unit, key.types, key.bounds) == (50_000_000, "elements", ("integer",), {"ge": 0})
    assert key.validated
    assert key.aliases == ("prefetch_bucket_size",)
    assert key.auto == ("transformers", "accelerate")
    assert key.source == "runtime/zero/config.py:222"
    stage = newest.key("zero_optimization.stage")
    assert stage is not None
    assert stage.choices == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("alias", "path"),
    [
        ("zero_optimization.max_live_parameters", "zero_optimization.stage3_max_live_parameters"),
        ("bfloat16.enabled", "bf16.enabled"),
        ("tensor_parallel.tensor_parallel.tp_size", "tensor_parallel.tp.tp_size"),
        ("tensor_parallel.tp.tp_size", "tensor_parallel.tp.tp_size"),
    ],
)
def test_aliases(newest: schema.Schema, alias: str, path: str) -> None:
    key = newest.key(alias)
    assert key is not None
    assert key.path == newest.canonical(alias) == path


def test_choices_follow_the_release() -> None:
    old, new = (schema.load(v).key("communication_data_type") for v in ("0.14.0", "0.14.1"))
    assert old is not None
    assert new is not None
    assert "bfp16" in old.choices
    assert "bf16" in new.choices


# ---- unknown keys


@pytest.mark.parametrize(
    ("section", "policy"),
    [
        ("", "ignored"),
        ("zero_optimization", "refused"),
        ("zero_optimization.offload_param", "refused"),
        ("fp16", "refused"),
        ("bfloat16", "refused"),
        ("timers", "ignored"),
        ("timers.throughput", "refused"),
        ("activation_checkpointing", "ignored"),
        ("pipeline", "ignored"),
        ("optimizer", "ignored"),
        ("optimizer.params", "passed"),
        ("scheduler.params", "passed"),
        ("expert_parallel", "ignored"),
    ],
)
def test_unknown_key_behaviour(newest: schema.Schema, section: str, policy: str) -> None:
    assert newest.unknown_key_behaviour(section) == policy


def test_fp16_refuses_unknown_keys_since_0_17_1() -> None:
    assert schema.load("0.17.0").unknown_key_behaviour("fp16") == "ignored"
    assert schema.load("0.17.1").unknown_key_behaviour("fp16") == "refused"


@pytest.mark.parametrize(
    ("version", "path"),
    [
        ("0.19.6", "amp.opt_level"),
        ("0.19.7", "zero_optimization.zeropp_loco_param.err_beta"),
        ("0.14.3", "compile.kwargs.mode"),
        (NEWEST, "tensor_parallel.partition_config.layer_specs"),
        (NEWEST, "data_efficiency.data_routing.random_ltd.total_layer_num"),
    ],
)
def test_keys_in_a_plain_dictionary_are_passed_on(version: str, path: str) -> None:
    assert schema.load(version).behaviour(path) == "passed"


def test_a_section_lists_its_keys(newest: schema.Schema) -> None:
    found = newest.section("zero_optimization.offload_param")
    assert found is not None
    assert {key.name for key in found.keys} == {
        "device", "nvme_path", "buffer_count", "buffer_size", "max_in_cpu", "pin_memory",
    }  # fmt: skip
    assert newest.section("train_batch_size") is None
    assert newest.section("no_such_block") is None


# ---- optimizers and schedulers


def test_optimizers_are_known_in_any_case(newest: schema.Schema) -> None:
    names = {component.name for component in newest.components("optimizer")}
    assert names == {"Adam", "AdamW", "Adagrad", "Lamb", "Lion", "Muon", "MuAdam", "MuAdamW", "MuSGD"}
    adamw = newest.component("optimizer", "adamw")
    assert adamw == newest.component("optimizer", "ADAMW")
    assert adamw is not None
    assert adamw.unknown == "refused"
    assert {"lr", "betas", "eps", "weight_decay", "torch_adam", "adam_w_mode"} <= set(adamw.params)
    assert "max_grad_norm" not in adamw.params
    assert adamw.params["fused"].only == "torch_adam"
    assert newest.component("optimizer", "SGD") is None


def test_schedulers_are_known_by_their_exact_name(newest: schema.Schema) -> None:
    warmup = newest.component("scheduler", "WarmupLR")
    assert warmup is not None
    assert set(warmup.params) == {"warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type"}
    assert newest.component("scheduler", "warmuplr") is None
    decay = newest.component("scheduler", "WarmupDecayLR")
    assert decay is not None
    assert decay.params["total_num_steps"].required
    assert schema.load("0.12.2").component("scheduler", "WarmupCosineLR") is None
    assert schema.load("0.12.3").component("scheduler", "WarmupCosineLR") is not None


def test_parameters_are_keys_too(newest: schema.Schema) -> None:
    rate = newest.key("optimizer.params.lr")
    assert rate is not None
    assert rate.default == 0.001
    assert newest.key("optimizer.params.freeze_step") is None
    assert newest.key("optimizer.params.max_grad_norm") is None
    assert newest.behaviour("optimizer.params.max_grad_norm") == "refused"


# ---- the nearest key


@pytest.mark.parametrize(
    ("wrong", "right", "reason"),
    [
        ("gradient_clipp1ng", "gradient_clipping", "misspelt"),
        ("offload_optimizer", "zero_optimization.offload_optimizer", "moved"),
        (
            "zero_optimization.stage3_prefetch_bucket_sizes",
            "zero_optimization.stage3_prefetch_bucket_size",
            "misspelt",
        ),
        ("zero_optimisation.stage", "zero_optimization.stage", "misspelt"),
        ("zero_optimisation.stagee", "zero_optimization.stage", "misspelt"),
        ("stage", "zero_optimization.stage", "moved"),
        ("lr", "optimizer.params.lr", "moved"),
        ("optimizer.lr", "optimizer.params.lr", "moved"),
        ("max_grad_norm", "gradient_clipping", "synonym"),
        ("scheduler.params.warmup_steps", "scheduler.params.warmup_num_steps", "synonym"),
        ("scheduler.params.warmup_num_step", "scheduler.params.warmup_num_steps", "misspelt"),
        ("fp16.initial_scale", "fp16.initial_scale_power", "synonym"),
        ("bfloat16.enable", "bf16.enabled", "misspelt"),
        ("ZERO_OPTIMIZATION", "zero_optimization", "misspelt"),
    ],
)
def test_nearest(newest: schema.Schema, wrong: str, right: str, reason: str) -> None:
    found = newest.nearest(wrong)
    assert found is not None
    assert (found.path, found.reason) == (right, reason)
    assert f"{found.parent}.{found.name}".lstrip(".") == right


@pytest.mark.parametrize("path", ["zzz", "enabled", "foo.bar", "_comment", ""])
def test_nothing_is_near(newest: schema.Schema, path: str) -> None:
    assert newest.nearest(path) is None


def test_a_name_in_several_blocks_names_the_others(newest: schema.Schema) -> None:
    found = newest.nearest("zero_optimization.nvme_path")
    assert found is not None
    assert {found.path, *found.others} == {
        "zero_optimization.offload_optimizer.nvme_path",
        "zero_optimization.offload_param.nvme_path",
    }


def test_synonyms_lead_to_keys(newest: schema.Schema) -> None:
    for path in newest.synonyms().values():
        assert path.startswith("trimtab.") or newest.key(path) is not None


# ---- pages


@pytest.mark.parametrize("version", schema.known_versions()[::9])
def test_every_path_has_a_page(version: str) -> None:
    known = schema.load(version)
    for path in table()["keys"]:
        text = known.page(path)
        assert text.startswith(known.canonical(path) + "\n")
        assert "  source " in text
        assert max(map(len, text.splitlines()[1:])) <= 80  # below the path, which has no place to break
    for kind in ("optimizer", "scheduler"):
        for name in table()[f"{kind}s"]:
            assert f"({kind})" in known.page(name)


def test_a_page(newest: schema.Schema) -> None:
    assert newest.page("zero_optimization.offload_optimizer.ratio") == (
        "zero_optimization.offload_optimizer.ratio\n"
        "  Share of the optimizer states that goes to the CPU.\n"
        "\n"
        "  type        number, at least 0.0, at most 1.0\n"
        "  default     1.0\n"
        "  unit        share\n"
        "  checked     the engine checks its type and bounds\n"
        "  releases    since 0.12.3\n"
        "  source      deepspeed/runtime/zero/offload_config.py:99 (DeepSpeed 0.19.8)\n"
        "              deepspeed/runtime/zero/offload_config.py:100 (unit, found by\n"
        "              reading)\n"
        "\n"
        "  Below 1 only at stage 3. [deepspeed/runtime/zero/config.py:395]\n"
    )


def test_a_page_tells_of_changed_defaults_and_removals(newest: schema.Schema) -> None:
    assert "1.0 in 0.19.8 (0.0 since 0.10.3 or earlier, 1.0 since 0.19.3)" in newest.page("gradient_clipping")
    assert "removed in 0.19.7" in newest.page("OneBitAdam")
    assert "OneBitAdam, OneBitLamb" in newest.page("optimizer.params.freeze_step")
    assert "0.01 (Adagrad)" in newest.page("optimizer.params.lr")


def test_no_page_but_a_hint(newest: schema.Schema) -> None:
    with pytest.raises(NotFound, match=r"Did you mean gradient_clipping\?"):
        newest.page("gradient_clipp1ng")


# ---- the JSON Schema


def subschemas(node: Any) -> list[dict[str, Any]]:
    """Every schema object within a schema."""
    if isinstance(node, list):
        return [found for item in node for found in subschemas(item)]
    if not isinstance(node, dict):
        return []
    found = [node]
    for name in ("properties", "patternProperties"):
        for child in node.get(name, {}).values():
            found += subschemas(child)
    for name in ("items", "anyOf", "allOf", "if", "then", "additionalProperties"):
        found += subschemas(node.get(name))
    return found


def test_json_schema_is_a_well_formed_draft_07(newest: schema.Schema) -> None:
    made = newest.json_schema()
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert made["$schema"] == "http://json-schema.org/draft-07/schema#"
    names = {"null", "boolean", "integer", "number", "string", "array", "object"}
    keywords = {
        "$schema", "title", "description", "default", "type", "enum", "const", "properties",
        "patternProperties", "additionalProperties", "required", "items", "anyOf", "allOf", "if", "then",
        "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    }  # fmt: skip
    for part in subschemas(made):
        assert set(part) <= keywords
        types = part.get("type", [])
        assert set([types] if isinstance(types, str) else types) <= names
        if "enum" in part:
            assert part["enum"]
            assert len({json.dumps(choice) for choice in part["enum"]}) == len(part["enum"])
        assert set(part.get("required", ())) <= set(part.get("properties", {"type": None}))


def test_json_schema_of_some_keys(newest: schema.Schema) -> None:
    made = newest.json_schema()
    top = made["properties"]
    assert made["additionalProperties"] is False
    assert {"anyOf", "description", "default"} == set(top["train_batch_size"])
    assert {"const": "auto"} in top["train_batch_size"]["anyOf"]
    zero = top["zero_optimization"]["anyOf"][0]
    assert zero["additionalProperties"] is False
    assert zero["properties"]["sub_group_size"]["minimum"] == 0
    assert zero["properties"]["prefetch_bucket_size"] == zero["properties"]["stage3_prefetch_bucket_size"]
    assert top["bfloat16"] == top["bf16"]
    assert "additionalProperties" not in top["optimizer"]["properties"]["params"]
    assert set(top["trimtab"]["properties"]) == {
        "model", "task", "sequence_length", "target_length", "checkpoint_activations", "attention", "lora",
        "pipeline_stages", "kernels",
    }  # fmt: skip


def test_json_schema_follows_the_release() -> None:
    assert "nebula" in schema.load("0.19.6").json_schema()["properties"]
    assert "nebula" not in schema.load("0.19.7").json_schema()["properties"]


def test_json_schema_names_each_optimizer_s_parameters(newest: schema.Schema) -> None:
    block = newest.json_schema()["properties"]["optimizer"]
    cases = {case["if"]["properties"]["type"]["enum"][0]: case["then"] for case in block["allOf"]}
    assert set(cases) == {"Adam", "AdamW", "Adagrad", "Lamb", "Lion", "Muon"}
    params = cases["AdamW"]["properties"]["params"]
    assert params["additionalProperties"] is False
    assert {"const": "auto"} in params["properties"]["lr"]["anyOf"]


# ---- the table


def test_the_table_is_whole() -> None:
    versions = set(schema.known_versions())
    for path, entry in table()["keys"].items():
        releases = {entry[name] for name in ("since", "removed", "refused") if name in entry}
        releases |= {era["since"] for era in entry.get("history", ())}
        assert releases <= versions, path
        assert entry["source"].partition(":")[2].isdecimal(), path
        above = path.rpartition(".")[0]
        assert above in table()["sections"], path
        assert not above or above in table()["keys"], path


def test_every_accepted_key_is_described(newest: schema.Schema) -> None:
    for path in newest.paths():
        key = newest.key(path)
        assert key is not None
        assert key.description.endswith("."), path
    for kind in ("optimizer", "scheduler"):
        for component in newest.components(kind):
            assert all(key.description for key in component.params.values())


def test_defaults_fit_their_own_types(newest: schema.Schema) -> None:
    fitting = {
        "null": type(None), "boolean": bool, "integer": int, "number": (int, float), "string": str,
        "array": list, "object": dict, "any": object,
    }  # fmt: skip
    for path in newest.paths():
        key = newest.key(path)
        assert key is not None
        if not key.has_default:
            continue
        kinds = [fitting[name] for name in key.types]
        assert any(isinstance(key.default, kind) for kind in kinds), path
        if key.choices and key.default is not None:
            assert key.default in key.choices, path


def test_loading_needs_neither_torch_nor_deepspeed() -> None:
    code = (
        "import sys; from trimtab import schema; schema.load().page('zero_optimization');"
        "schema.load().json_schema(); schema.load().nearest('stagee');"
        "print(sorted({'torch', 'deepspeed', 'yaml', 'typer', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
