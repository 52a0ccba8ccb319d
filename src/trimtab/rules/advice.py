"""AD: what the numbers say once the model, and perhaps the machines, are known."""

from __future__ import annotations

from collections.abc import Iterable

from trimtab.rules.base import Hit, put, remove, rule
from trimtab.rules.estimate import need
from trimtab.rules.subject import Subject
from trimtab.units import format_bytes

COMFORTABLE = 0.8  # of a card: what allocator, context and fragments leave of it (the guide's own margin)
TIGHT = 0.93
OFFLOAD = ("offload_optimizer", "offload_param")
# learning rates that published runs of the family use, with room of 2 on both sides: LLaMA table 2 and Alpaca
# (2e-5 .. 3e-4), GPT-3 table 2.1 (6e-5 .. 6e-4), BERT appendix A.2-A.3 (2e-5 .. 1e-4) and LAMB (up to 6e-3
# for
# batches of 32k), T5 section 3.1 (1e-3 fine-tuning, 1e-2 pre-training), LoRA appendix D (1e-4 .. 2e-3)
RATES = {
    "llama": (1e-6, 6e-4), "mistral": (1e-6, 6e-4), "qwen": (1e-6, 6e-4), "gemma": (1e-6, 6e-4),
    "gpt": (1e-6, 1.2e-3), "bert": (5e-6, 6e-3), "t5": (5e-6, 2e-2),
}  # fmt: skip
LORA_RATES = (2e-5, 4e-3)


def _stage_place(subject: Subject) -> tuple[str | int, ...]:
    return subject.place("zero_optimization.stage") or subject.place("zero_optimization") or ()


@rule("AD001", "model-that-does-not-fit", "error")
def model_that_does_not_fit(subject: Subject) -> Iterable[Hit]:
    """Finds configurations that need more GPU memory than there is.

    Why is this bad?
        The run ends in `CUDA out of memory`, in the first step or, where the optimizer's states come late, in
        the second.
    Example
        With `--gpu a100-40gb --gpus-per-node 8 --nodes 1`:
        {"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 1}, "bf16": {"enabled": true},
         "optimizer": {"type": "AdamW"}, "trimtab": {"model": "llama-13b", "sequence_length": 2048}}
    Use instead
        With `--gpu a100-40gb --gpus-per-node 8 --nodes 1`:
        {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}, "bf16": {"enabled": true},
         "optimizer": {"type": "AdamW"}, "trimtab": {"model": "llama-7b", "sequence_length": 2048,
         "checkpoint_activations": true}}
    Source
        trimtab.cost.memory, held against DeepSpeed's own engine
    """
    found = need(subject)
    if found is None or subject.cluster is None or subject.model is None:
        return
    gpu = subject.cluster.gpu
    if found.gpu_bytes > gpu.usable_bytes * TIGHT:
        over = found.gpu_bytes > gpu.usable_bytes
        yield Hit(
            _stage_place(subject),
            f"{subject.model.name} needs {format_bytes(found.gpu_bytes)} on each of "
            f"{subject.cluster.world_size} "
            f"GPUs; a {gpu.name} has {format_bytes(gpu.usable_bytes)}"
            + ("." if over else ", which leaves too little for CUDA, NCCL and fragments."),
            at_value=True,
            severity="error" if over else "warning",
            refused="running" if over else None,
        )


@rule("AD002", "offload-that-is-not-needed", "info")
def offload_that_is_not_needed(subject: Subject) -> Iterable[Hit]:
    """Finds offload of what would fit on the GPU.

    Why is this bad?
        Every step then waits for copies and for an optimizer on the CPU, to save memory that is free.
    Example
        With `--gpu a100-80gb --gpus-per-node 8 --nodes 1`:
        {"train_micro_batch_size_per_gpu": 2, "bf16": {"enabled": true}, "optimizer": {"type": "AdamW"},
         "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}},
         "trimtab": {"model": "t5-large", "task": "seq2seq-lm"}}
    Use instead
        With `--gpu a100-80gb --gpus-per-node 8 --nodes 1`:
        {"train_micro_batch_size_per_gpu": 2, "bf16": {"enabled": true}, "optimizer": {"type": "AdamW"},
         "zero_optimization": {"stage": 3}, "trimtab": {"model": "t5-large", "task": "seq2seq-lm"}}
    Fix safety
        The blocks are removed: the same training, faster: unsafe, since the estimate may be wrong.
    Source
        trimtab.cost.memory, held against DeepSpeed's own engine
    """
    if subject.cluster is None or subject.model is None or subject.offload("optimizer") == "none":
        return
    changes = {
        f"zero_optimization.{name}": None for name in OFFLOAD if subject.has(f"zero_optimization.{name}")
    }
    found = need(subject, changes)
    usable = subject.cluster.gpu.usable_bytes
    if found is not None and found.gpu_bytes < COMFORTABLE * usable:
        place = subject.place("zero_optimization.offload_optimizer") or ()
        yield Hit(
            place,
            f"without offload {subject.model.name} needs {format_bytes(found.gpu_bytes)} of "
            f"{format_bytes(usable)} on each GPU: offload only slows it down.",
            remove(place, safety="unsafe") if place else None,
        )


@rule("AD003", "host-memory-too-short", "warning")
def host_memory_too_short(subject: Subject) -> Iterable[Hit]:
    """Finds offload that needs more memory than the hosts have.

    Why is this bad?
        The kernel kills the processes: exit code -9 and no message. Offloaded Adam needs 18 bytes a
        parameter, 20 with the parameters, over all hosts together.
    Example
        With `--gpu a100-40gb --gpus-per-node 1 --nodes 1`:
        {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": true}, "optimizer": {"type": "AdamW"},
         "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"},
         "offload_param": {"device": "cpu"}},
         "trimtab": {"model": "llama-13b", "checkpoint_activations": true}}
    Use instead
        With `--gpu a100-40gb --gpus-per-node 8 --nodes 1`:
        {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": true}, "optimizer": {"type": "AdamW"},
         "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"},
         "offload_param": {"device": "cpu"}},
         "trimtab": {"model": "llama-13b", "checkpoint_activations": true}}
    Source
        deepspeed/runtime/zero/stage3.py:791-795, 904-907, 1337-1342
    """
    if subject.cluster is None or subject.offload("optimizer") == "none":
        return
    found = need(subject)
    if found is not None and found.host_bytes_per_node > subject.cluster.host_memory_bytes:
        place = subject.place("zero_optimization.offload_optimizer") or ()
        yield Hit(
            place,
            f"offload needs {format_bytes(found.host_bytes_per_node)} on each host, which has "
            f"{format_bytes(subject.cluster.host_memory_bytes)}.",
        )


@rule("AD004", "learning-rate-far-from-the-family", "warning")
def learning_rate_far(subject: Subject) -> Iterable[Hit]:
    """Finds learning rates far from those that the model's family is trained with.

    Why is this bad?
        Far above, the loss diverges or falls to NaN in fp16; far below, nothing is learnt in time.
    Example
        {"optimizer": {"type": "AdamW", "params": {"lr": 0.01}}, "trimtab": {"model": "llama-7b"}}
    Use instead
        {"optimizer": {"type": "AdamW", "params": {"lr": 0.00002}}, "trimtab": {"model": "llama-7b"}}
    Source
        LLaMA (table 2), GPT-3 (table 2.1), BERT (appendix A), LAMB, T5 (section 3.1), LoRA (appendix D)
    """
    rate = subject.block("optimizer.params").get("lr")
    if subject.model is None or isinstance(rate, bool) or not isinstance(rate, (int, float)) or rate <= 0:
        return
    adam = subject.optimizer in ("adam", "adamw", "lamb")
    lora = subject.job is not None and subject.job.lora is not None
    found = LORA_RATES if lora else RATES.get(subject.model.family)
    if found is None or not adam or found[0] <= rate <= found[1]:
        return
    how = "adapters of" if lora else "the family of"
    yield Hit(
        ("optimizer", "params", "lr"),
        f"lr {rate:g} is far from what {how} {subject.model.name} is trained with ({found[0]:g} to "
        f"{found[1]:g}).",
        at_value=True,
    )


@rule("AD005", "batch-far-from-the-usual", "info")
def batch_far_from_the_usual(subject: Subject) -> Iterable[Hit]:
    """Finds global batches far from those that the model's family is trained with.

    Why is this bad?
        A batch of a few samples gives noisy gradients; one of many thousands needs a larger learning rate
        and wastes samples.
    Example
        With `--gpus-per-node 8 --nodes 64`:
        {"train_micro_batch_size_per_gpu": 64, "gradient_accumulation_steps": 4,
         "trimtab": {"model": "llama-7b"}}
    Use instead
        With `--gpus-per-node 8 --nodes 1`:
        {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 4,
         "trimtab": {"model": "llama-7b"}}
    Source
        McCandlish et al., An Empirical Model of Large-Batch Training; LLaMA section 2.3 (4M tokens)
    """
    size = subject.world.size
    if subject.model is None or subject.typed is None or size is None:
        return
    from trimtab.errors import TrimtabError

    try:
        batch = subject.typed.batch(size)
    except (TrimtabError, ValueError, TypeError, ZeroDivisionError):
        return
    assert subject.job is not None
    tokens = batch.train * subject.job.sequence_length
    place = subject.place("train_batch_size") or subject.place("train_micro_batch_size_per_gpu") or ()
    if tokens > 16_000_000:  # four times the largest batch of the LLaMA and GPT-3 papers
        yield Hit(
            place,
            f"a global batch of {batch.train:,} samples is {tokens / 1e6:.0f}M tokens: published runs "
            "use up to 4M.",
            at_value=True,
        )
    elif batch.train < 8 and size > 1:
        yield Hit(
            place,
            f"a global batch of {batch.train} samples is small: gradients will be noisy.",
            at_value=True,
        )


@rule("AD006", "sequence-longer-than-positions", "error", refused="running")
def sequence_longer_than_positions(subject: Subject) -> Iterable[Hit]:
    """Finds sequences longer than the model has positions for.

    Why is this bad?
        A table of learnt positions ends in an IndexError (on a GPU: a device-side assert). Rotary positions
        go on beyond their range, and the model knows nothing there.
    Example
        {"trimtab": {"model": "gpt2", "sequence_length": 2048}}
    Use instead
        {"trimtab": {"model": "gpt2", "sequence_length": 1024}}
    Fix safety
        The sequence is cut to the positions there are: unsafe.
    Source
        the model's own config.json (max_position_embeddings, n_positions)
    """
    if subject.model is None or subject.job is None or not subject.has("trimtab.sequence_length"):
        return
    limit, length = subject.model.max_positions, subject.job.sequence_length
    if limit and length > limit and subject.model.positions in ("learned", "rotary"):
        learned = subject.model.positions == "learned"
        place = ("trimtab", "sequence_length")
        yield Hit(
            place,
            f"sequence_length {length} is more than the {limit} positions of {subject.model.name}.",
            put(place, limit),
            at_value=True,
            severity="error" if learned else "warning",
            refused="running" if learned else None,
        )


@rule("AD007", "job-that-is-not-understood", "error")
def job_not_understood(subject: Subject) -> Iterable[Hit]:
    """Finds a "trimtab" block that does not say what it means.

    Why is this bad?
        DeepSpeed ignores the block, but every command of Trimtab works from it.
    Example
        {"trimtab": {"model": "llama-7b", "sequence_lenght": 2048}}
    Use instead
        {"trimtab": {"model": "llama-7b", "sequence_length": 2048}}
    Source
        trimtab.job
    """
    if subject.job_problem is not None:
        yield Hit(("trimtab",), subject.job_problem)
