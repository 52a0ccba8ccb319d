"""PL: mixtures of experts, and expert parallelism."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from trimtab.rules.base import Hit, put, remove, rule, shown
from trimtab.rules.subject import Subject
from trimtab.source.tree import KeyPath

# names that published mixtures of experts go by, and those whose module is a leaf by default
# (runtime/zero/leaf_module_config.py)
EXPERTS = re.compile(r"mixtral|moe|deepseek-v[23]|deepseek-r1|dbrx|jamba|grok-1|arctic|switch-|gpt-oss")
LEAVES = re.compile(r"mixtral|qwen[23]\S*moe|qwen3-\d+b-a\d+b")


@rule("PL007", "experts-with-hanging-gathers", "warning")
def experts_with_hanging_gathers(subject: Subject) -> Iterable[Hit]:
    """Finds stage 3 for a mixture of experts without leaf modules.

    Why is this bad?
        Ranks take different experts, gather different weights and wait for each other for ever. A leaf
        module is gathered whole. Since 0.18.0 Mixtral, Qwen2-MoE and Qwen3-MoE are leaves by default.
    Example
        {"zero_optimization": {"stage": 3}, "trimtab": {"model": "deepseek-ai/DeepSeek-V2-Lite"}}
    Use instead
        {"zero_optimization": {"stage": 3, "leaf_module": {"name_suffixes": ["mlp"]}},
         "trimtab": {"model": "deepseek-ai/DeepSeek-V2-Lite"}}
    Source
        https://github.com/deepspeedai/DeepSpeed/issues/5066; deepspeed/runtime/zero/leaf_module_config.py
    """
    name = (subject.model_name or "").lower()
    if subject.stage != 3 or not EXPERTS.search(name):
        return
    default = subject.since("0.18.0") and LEAVES.search(name)
    if not default and not subject.block("zero_optimization.leaf_module"):
        place = subject.place("zero_optimization.stage") or ()
        yield Hit(
            place,
            f"{subject.model_name} has experts, which hang at stage 3 unless their module is a leaf: "
            "set zero_optimization.leaf_module, or call deepspeed.utils.set_z3_leaf_modules.",
            at_value=True,
        )


@rule("PL009", "load-balance-coefficient", "error", refused="reading")
def load_balance_coefficient(subject: Subject) -> Iterable[Hit]:
    """Finds `expert_parallel.load_balance_coeff`, which no release supports yet.

    Why is this bad?
        DeepSpeed raises as it reads the file unless the value is null.
    Example
        {"expert_parallel": {"enabled": false, "load_balance_coeff": 0.01}}
    Use instead
        {"expert_parallel": {"enabled": false}}
    Fix safety
        The key is removed, which is what the engine does without: safe.
    Source
        deepspeed/module_inject/auto_ep_config.py:73-78
    """
    value = subject.block("expert_parallel").get("load_balance_coeff")
    known = subject.schema.key("expert_parallel.load_balance_coeff") is not None
    if known and value is not None:
        place = ("expert_parallel", "load_balance_coeff")
        yield Hit(
            place,
            f"load_balance_coeff is {shown(value)}; DeepSpeed has no load balancing yet.",
            remove(place),
        )


EP = "expert_parallel"
PRESETS = ("mixtral", "qwen3_moe", "qwen3_5_moe", "deepseek_v2", "deepseek_v3", "minimax_m3")
"""module_inject/auto_ep_presets/registry.py:29"""


@rule("PL016", "expert-parallel-that-cannot-be", "error", refused="building")
def expert_parallel_that_cannot_be(subject: Subject) -> Iterable[Hit]:
    """Finds sizes and settings of AutoEP that it refuses before it looks at the model.

    Why is this bad?
        `expert_parallel` splits experts over `autoep_size` ranks, which must divide the GPUs. Experts are not
        split inside (`expert_tensor_parallel_size` is reserved), several of its kernels need one another, and
        together with `tensor_parallel` it takes neither offload nor DeepCompile. The engine raises ValueError
        as it is built.
    Example
        With `--gpus-per-node 8 --nodes 1`:
        {"expert_parallel": {"enabled": true, "autoep_size": 3}}
    Use instead
        With `--gpus-per-node 8 --nodes 1`:
        {"expert_parallel": {"enabled": true, "autoep_size": 4}}
    Fix safety
        What is refused is removed, so that the default holds: unsafe. A size only its author knows.
    Source
        deepspeed/module_inject/auto_ep_config.py:121-262; deepspeed/module_inject/auto_ep_folding.py:78-250
    """
    block = subject.block(EP)
    if not subject.on(f"{EP}.enabled") or subject.schema.key(f"{EP}.autoep_size") is None:
        return
    size = block.get("autoep_size", 1)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        yield Hit((EP, "autoep_size"), f"autoep_size is {shown(size)}, but must be above 0.", at_value=True)
        return
    stages = subject.job.pipeline_stages if subject.job else 1
    ranks = subject.world.size // stages if subject.world.size else None
    if ranks and ranks % size:
        yield Hit(
            (EP, "autoep_size"),
            f"autoep_size {size} does not divide the {ranks} GPUs that hold the model.",
            at_value=True,
        )
    for name, why in _refused(subject, size):
        place: KeyPath = (EP, name)
        yield Hit(place, why, remove(place, safety="unsafe"), at_value=True)
    yield from _folded(subject, size)


def _refused(subject: Subject, size: int) -> Iterator[tuple[str, str]]:
    """Keys of the block that it refuses as they are, each with the reason."""
    block = subject.block(EP)
    if block.get("expert_tensor_parallel_size", 1) != 1:
        yield "expert_tensor_parallel_size", "experts cannot be split inside yet: the size must be 1."
    preset = block.get("preset_model")
    if preset is not None and preset not in PRESETS:
        yield "preset_model", f"preset_model is {shown(preset)}; there are {', '.join(PRESETS)}."
    if block.get("gate_up_impl") == "fused" and not block.get("use_grouped_mm", True):
        yield "gate_up_impl", "gate_up_impl fused needs use_grouped_mm, which is off."
    deep = block.get("comm_backend") == "deepep"
    if block.get("row_weighting_impl") == "fused" and (not deep or size == 1):
        yield "row_weighting_impl", "row_weighting_impl fused needs comm_backend deepep over several ranks."
    if deep and not block.get("comm_max_tokens_per_rank"):
        yield "comm_backend", "comm_backend deepep needs comm_max_tokens_per_rank."
    if block.get("combine_impl") == "fused_weighted_sum" and deep and size > 1:
        yield "combine_impl", "combine_impl fused_weighted_sum does not go with comm_backend deepep."
    groups, limited = block.get("num_expert_groups"), block.get("num_limited_groups")
    if isinstance(groups, int) and isinstance(limited, int) and limited > groups:
        yield "num_limited_groups", f"num_limited_groups {limited} is more than num_expert_groups {groups}."


def _folded(subject: Subject, size: int) -> Iterator[Hit]:
    """What AutoEP refuses together with tensor parallelism."""
    if (subject.integer("tensor_parallel.autotp_size") or 1) <= 1:
        return
    block = subject.block(EP)
    if size == 1:
        yield Hit((EP,), "expert_parallel beside tensor_parallel needs an autoep_size above 1.")
    for name, refused in (
        ("async_split_plan", block.get("async_split_plan") is True and size > 1),
        ("combine_impl", block.get("combine_impl") == "fused_weighted_sum"),
    ):
        if refused:
            message = f"{name} does not go with tensor_parallel."
            yield Hit((EP, name), message, remove((EP, name), safety="unsafe"))
    for name in ("offload_optimizer", "offload_param"):
        place = subject.place(f"zero_optimization.{name}")
        if place is not None and subject.written(f"zero_optimization.{name}") is not None:
            message = f"{name} does not go with expert_parallel beside tensor_parallel."
            yield Hit(place, message, remove(place, safety="unsafe"))
    for name in ("compile.deepcompile", "use_data_before_expert_parallelism"):
        place = subject.place(name)
        if place is not None and subject.on(name):
            message = f"{name} does not go with expert_parallel beside tensor_parallel."
            yield Hit(place, message, put(place, False))
    ours, theirs = block.get("preset_model"), subject.written("tensor_parallel.preset_model")
    if ours is not None and theirs is not None and ours != theirs:
        place = (EP, "preset_model")
        yield Hit(
            place, f"preset_model is {shown(ours)}, but {shown(theirs)} in tensor_parallel.", at_value=True
        )


@rule("PL017", "expert-parallel-with-zero", "error", refused="building")
def expert_parallel_with_zero(subject: Subject) -> Iterable[Hit]:
    """Finds settings of ZeRO that the engine refuses for a model whose experts AutoEP spreads.

    Why is this bad?
        Stages 1 and 2 assert `reduce_scatter`, stage 2 `contiguous_gradients`; stage 3 refuses hpZeRO,
        quantized gradients and a mesh for sequence parallelism. Where AutoEP finds no experts in the model
        nothing is refused, and nothing is spread either.
    Example
        {"expert_parallel": {"enabled": true, "autoep_size": 4},
         "zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}}
    Use instead
        {"expert_parallel": {"enabled": true, "autoep_size": 4}, "zero_optimization": {"stage": 3}}
    Fix safety
        The setting is removed, so that the default holds: unsafe.
    Source
        deepspeed/runtime/zero/stage_1_and_2.py:862-870; deepspeed/runtime/engine.py:2200-2232
    """
    dense = subject.model_name is not None and not EXPERTS.search(subject.model_name.lower())
    if not subject.on(f"{EP}.enabled") or subject.stage in (None, 0) or dense:
        return
    zero = "zero_optimization."
    refused = {
        1: [f"{zero}reduce_scatter"] * subject.off(f"{zero}reduce_scatter"),
        2: [name for name in (f"{zero}reduce_scatter", f"{zero}contiguous_gradients") if subject.off(name)],
        3: [f"{zero}zero_quantized_gradients"] * subject.on(f"{zero}zero_quantized_gradients")
        + [f"{zero}zero_hpz_partition_size"] * ((subject.integer(f"{zero}zero_hpz_partition_size") or 1) > 1)
        + ["data_parallel_size"]
        * (subject.has("data_parallel_size") and (subject.integer("sequence_parallel_size") or 1) > 1),
    }
    for name in refused.get(subject.stage or 0, ()):
        place = subject.place(name)
        if place is not None:
            yield Hit(
                place,
                f"{place[-1]} {shown(subject.written(name))} is refused at stage {subject.stage} "
                "where expert_parallel spreads experts.",
                remove(place, safety="unsafe"),
                at_value=True,
            )


HEAD, HEAD_LOSS = "tensor_parallel.vocab_parallel_lm_head", "tensor_parallel.vocab_parallel_ce_backend"


@rule("PL018", "vocabulary-parallel-head", "error", refused="building")
def vocabulary_parallel_head(subject: Subject) -> Iterable[Hit]:
    """Finds a vocabulary-parallel head where there is none to split, or a loss for one that is not split.

    Why is this bad?
        `vocab_parallel_lm_head` splits the output head of a causal language model over the tensor-parallel
        ranks, each of which needs a row; a model of another task has no `lm_head` and the engine raises
        ValueError. The loss of `vocab_parallel_ce_backend` "liger" needs such a head. Without tensor
        parallelism nothing reads either key.
    Example
        {"tensor_parallel": {"autotp_size": 2, "vocab_parallel_lm_head": false,
         "vocab_parallel_ce_backend": "liger"}}
    Use instead
        {"tensor_parallel": {"autotp_size": 2, "vocab_parallel_lm_head": true,
         "vocab_parallel_ce_backend": "liger"}}
    Fix safety
        The loss is torch's again, and a head that is not there is not asked for: both unsafe. Keys that
        nothing reads are removed: safe.
    Source
        deepspeed/runtime/engine.py:1062-1077; deepspeed/module_inject/auto_tp.py:745-800
    """
    head, loss = subject.place(HEAD), subject.place(HEAD_LOSS)
    size = subject.integer("tensor_parallel.autotp_size")
    wants, liger = subject.on(HEAD), subject.text(HEAD_LOSS) == "liger"
    if size is not None and size <= 1:
        for place in (head if wants else None, loss if liger else None):
            if place is not None:
                message = f"{place[-1]} does nothing without an autotp_size above 1."
                yield Hit(place, message, remove(place), severity="warning", refused=None)
        return
    task = subject.job.task if subject.job else None
    if head is not None and wants and subject.model is not None:
        if task is not None and task != "causal-lm":
            message = f"a model for {task} has no lm_head to split."
            yield Hit(head, message, remove(head, safety="unsafe"))
        rows, grain = subject.model.vocab_size, subject.integer("tensor_parallel.tp.tp_grain_size") or 1
        if size and rows < size * grain:
            yield Hit(head, f"{rows} rows of the head do not give each of {size} ranks {grain}.")
    # one that is tied to the embedding may be split unasked (runtime/engine.py:1126)
    untied = subject.model is not None and not subject.model.tied_embeddings
    if loss is not None and liger and (subject.off(HEAD) or (untied and not wants)):
        yield Hit(
            loss,
            'vocab_parallel_ce_backend "liger" needs vocab_parallel_lm_head.',
            remove(loss, safety="unsafe"),
            at_value=True,
        )
