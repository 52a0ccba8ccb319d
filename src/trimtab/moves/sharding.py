"""What ZeRO shards, and in what portions the sharded optimizer steps."""

from __future__ import annotations

from trimtab.cluster import Cluster
from trimtab.config import ZERO_DEFAULTS, ZERO_OPTIMIZERS, Config
from trimtab.model import Model
from trimtab.moves.move import Kind, Move, Value, moved
from trimtab.moves.writing import with_zero, without_unread

_SAVES = {
    0: "communication: one all-reduce of the gradients and nothing else",
    1: "optimizer states: 12 bytes a parameter, spread over all ranks",
    2: "optimizer states and gradients: 14 bytes a parameter, spread over all ranks",
    3: "parameters too: all 16 bytes a parameter, spread over all ranks",
}
_COSTS = {
    0: "memory: every GPU holds all 16 bytes a parameter, and more in its step",
    1: "an all-gather of the parameters after each step",
    2: "a reduction of the gradients in every micro step",
    3: "two all-gathers of all parameters and a reduction in every micro step",
}


def zero_stage(stage: int) -> Move:
    """ZeRO stage 0 to 3; keys that the new stage ignores or refuses go."""

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        if stage and config.optimizer_type is None and not config.stage:
            return "the file names no optimizer, which ZeRO needs"
        if stage > 1 and config.job.pipeline_stages > 1:
            return "pipelines take ZeRO stage 0 or 1 (runtime/pipe/engine.py:76)"
        if stage != config.stage:
            return _conflict(apply(config, cluster), config.stage)
        return None

    def apply(config: Config, cluster: Cluster) -> Config:
        if config.stage == stage:
            return config
        changes: dict[str, object] = {"stage": stage}
        if stage == 3:
            changes["stage3_gather_16bit_weights_on_model_save"] = True
            if config.optimizer_type == "muon":
                changes["reduce_scatter"] = False  # runtime/zero/stage3.py:360-363
        # what the old stage did not read is not to wake up at the new one
        return without_unread(with_zero(without_unread(config), changes))

    return moved(
        "zero-stage",
        stage,
        title=f"ZeRO stage {stage}",
        saves=_SAVES[stage],
        costs=_COSTS[stage],
        needs="an optimizer in the file" if stage else "nothing",
        source="Rajbhandari et al. 2020, sections 5 and 7; runtime/zero/config.py:95",
        refuses=refuses,
        apply=apply,
    )


def _conflict(after: Config, before: int) -> str | None:
    """Why DeepSpeed would refuse the file after a move from stage ``before``."""
    stage, mixed = after.stage, after.gradient_bytes != after.parameter_bytes
    if stage == 3 and after.tensor_parallel > 1:
        return "AutoTP goes with ZeRO stages 0 to 2"
    if stage == 0:
        if mixed:
            return "gradients are summed in another type than the model's, which stage 0 cannot"
        halves = ("bf16.bf16_master_weights_and_grads", "fp16.fp16_master_weights_and_grads")
        if any(after.get(key) for key in halves):
            return "half-precision master weights need ZeRO (runtime/config.py:702)"
    if stage == 1 and mixed and after.precision == "bf16" and after.offload_optimizer != "cpu":
        return "gradients summed in fp32 stay whole on every GPU at stage 1; stage 2 shards them"
    name = after.optimizer_type
    if not before and name not in (*ZERO_OPTIMIZERS, None) and not after.get("zero_allow_untested_optimizer"):
        return f"{name} is untested with ZeRO (runtime/engine.py:2298): its layers are cut into flat slices"
    if stage == 3 and after.get("gradient_allreduce_op") == "sum":
        return 'gradient_allreduce_op "sum" is refused at stage 3 (runtime/config.py:694)'
    scaled = after.get("prescale_gradients") or after.get("gradient_predivide_factor", 1.0) != 1.0
    if stage >= 2 and after.zero("reduce_scatter") and scaled:
        return f"prescaled gradients are refused at stage {stage} (runtime/zero/stage_1_and_2.py:346)"
    if stage < 2 and after.get("managed_gradient_accumulation") is False and after.zero("overlap_comm"):
        return "unmanaged accumulation is refused with overlap_comm below stage 2 (runtime/engine.py:2030)"
    return None


def sub_group(elements: int) -> Move:
    """The portion of a rank's shard that stage 3 steps at a time."""

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        return None if config.stage == 3 else f"only stage 3 has sub-groups, not stage {config.stage}"

    return moved(
        "sub-group",
        elements,
        title=f"Optimizer steps over {elements:,} elements at a time",
        saves="the step's fp32 copies of gradients, 6 bytes an element of the largest sub-group; on the host "
        "its buffers of that size where the optimizer is on NVMe",
        costs="more, smaller optimizer steps",
        needs="ZeRO stage 3",
        source="runtime/zero/config.py:182; runtime/zero/stage3.py:2683-2699, 840-860",
        refuses=refuses,
        apply=lambda config, cluster: with_zero(config, {"sub_group_size": elements}),
    )


def _stages(config: Config, model: Model, cluster: Cluster) -> tuple[Value, ...]:
    return (0, 1, 2, 3)


def _sub_groups(config: Config, model: Model, cluster: Cluster) -> tuple[Value, ...]:
    current = int(config.zero("sub_group_size"))
    default = int(ZERO_DEFAULTS["sub_group_size"])
    return tuple(size for size in (default, 100_000_000) if size != current)


KINDS = (
    Kind(name="zero-stage", title="What ZeRO shards", make=zero_stage, options=_stages, read=int),
    Kind(
        name="sub-group", title="Portions of the sharded step", make=sub_group, options=_sub_groups, read=int
    ),
)
