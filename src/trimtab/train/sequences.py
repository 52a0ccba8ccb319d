"""Ulysses: every sample's tokens over the ranks of a group; each attends with its part of the heads."""

from __future__ import annotations

from typing import Any

from trimtab.config import Config

IGNORED = -100


def share_attention(module: Any, size: int, *, micro: int, length: int) -> Any:
    """Put DeepSpeed's exchange around the model's attention; what ``deepspeed.initialize`` takes as ``mpu``.

    ``micro`` samples of ``length`` tokens lie on ``size`` ranks; None if that is 1.  The process group must
    be up.
    """
    if size == 1:
        return None
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    return UlyssesSPAttentionHF.register_with_transformers(
        module,
        module.config._attn_implementation,
        size,
        micro,
        seq_length=length,
        seq_length_is_variable=False,
    )


def part_of(batch: dict[str, Any], rank: int, size: int) -> dict[str, Any]:
    """This rank's stretch of every sample, with its places and the labels of its tokens' successors.

    The ranks of a group hold the same ``batch``: each cuts its own part of it.
    """
    import torch

    labels = torch.nn.functional.pad(batch["labels"], (0, 1), value=IGNORED)[:, 1:]
    length = labels.shape[1] // size
    mine = slice(length * rank, length * (rank + 1))
    places = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
    return {
        "input_ids": batch["input_ids"][:, mine],
        "position_ids": places[:, mine],
        "shift_labels": labels[:, mine].contiguous(),
    }


def loss_of_part(engine: Any, part: dict[str, Any], size: int) -> Any:
    """``size`` times this rank's share of the loss, so that the loss is the mean over a group's ranks."""
    import torch.distributed as dist
    from deepspeed.runtime.sequence_parallel import parallel_state_sp

    labels = part["shift_labels"]
    counted = (labels != IGNORED).sum()
    dist.all_reduce(counted, group=parallel_state_sp.get_sequence_parallel_group())
    logits = engine(input_ids=part["input_ids"], position_ids=part["position_ids"]).logits
    module = engine.module
    return module.loss_function(
        logits=logits,
        labels=None,
        shift_labels=labels,
        vocab_size=module.config.get_text_config().vocab_size,
        num_items_in_batch=counted.clamp(min=1) / size,
    )


def weight_of_part(config: Config) -> float:
    """What the engine's gradients of `loss_of_part` have to be multiplied by.

    Stages 0 to 2 add the gradients of a group's ranks (engine.py:3884, stage_1_and_2.py:1688), and so does
    stage 3 by all-reduces (stage3.py:1878); its reduce-scatter takes their mean (coalesced_collectives.py).
    """
    mean = config.stage == 3 and bool(config.zero("reduce_scatter"))
    return 1.0 if mean else 1.0 / config.sequence_parallel
