"""OF: what swapping parameters to NVMe needs, for a model that is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trimtab.rules.base import Hit, put, rule
from trimtab.rules.offload import LEAST_SWAPPED_BYTES, PARAM
from trimtab.rules.shares import shares_of
from trimtab.rules.subject import Subject

REUSE = "zero_optimization.stage3_max_reuse_distance"


@rule("OF016", "too-few-buffers-for-nvme", "error", refused="running")
def too_few_buffers_for_nvme(subject: Subject) -> Iterable[Hit]:
    """Finds parameters offloaded to NVMe of which more are in use at once than there are buffers.

    Why is this bad?
        A share that is in use holds one of `buffer_count` buffers, five by default. Where the forward pass
        ends and the backward pass begins, weights that come back within `stage3_max_reuse_distance` elements,
        a billion by default, are kept: the engine asserts `Not enough buffers 0 for swapping 1`. Only shares
        beyond the `max_in_cpu` elements that stay in the host's memory are swapped.
    Example
        With `--gpus-per-node 1 --nodes 1 --model llama-2-7b`:
        {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/local_nvme",
         "buffer_size": 200000000}}, "optimizer": {"type": "AdamW"}}
    Use instead
        With `--gpus-per-node 1 --nodes 1 --model llama-2-7b`:
        {"zero_optimization": {"stage": 3, "stage3_max_reuse_distance": 0, "offload_param": {"device": "nvme",
         "nvme_path": "/local_nvme", "buffer_size": 200000000}}, "optimizer": {"type": "AdamW"}}
    Fix safety
        Weights are released after each use and read again, which takes no more buffers: unsafe.
    Source
        deepspeed/runtime/swap_tensor/partitioned_param_swapper.py:310;
        deepspeed/runtime/zero/partitioned_param_coordinator.py:653-662;
        deepspeed/runtime/zero/stage3.py:890-905
    """
    above, count = subject.place(PARAM), subject.integer(f"{PARAM}.buffer_count")
    if above is None or count is None or subject.stage != 3 or subject.offload("param") != "nvme":
        return
    if not isinstance(subject.written(PARAM), Mapping):
        return
    needed = buffers_at_once(subject)
    if needed <= count:
        return
    place = subject.place(f"{PARAM}.buffer_count")
    yield Hit(
        place or above,
        f"at least {needed} shares are in use at once, but buffer_count is "
        f"{count}{'' if place else ' (the default)'}.",
        put(subject.place(REUSE) or (above[0], "stage3_max_reuse_distance"), 0),
        at_value=place is not None,
    )


def buffers_at_once(subject: Subject) -> int:
    """The least number of shares on NVMe that are in use together; 0 where nobody can say.

    The last parameters of the forward pass are the first of the backward pass, so that what lies between two
    uses of one is twice what follows it, and three times where layers are recomputed.
    """
    reuse, in_memory = subject.integer(REUSE), subject.integer(f"{PARAM}.max_in_cpu")
    held, ranks, job = shares_of(subject), subject.world.size, subject.job
    if reuse is None or in_memory is None or not held or ranks is None or job is None or job.lora is not None:
        return 0
    item = 4 if subject.precision == "fp32" else 2
    least = max(LEAST_SWAPPED_BYTES, subject.integer("aio.block_size") or 0)
    window = reuse // (3 if job.checkpoint_activations else 2)
    swapped = (sum(share.elements for share in held) - in_memory) * ranks
    kept, passed = 0, 0
    for share in reversed(held):
        passed += share.of
        if passed > min(window, swapped):
            break
        kept += share.elements * item >= least
    return kept + 1 if kept else 0
