"""PL: pipelines, tensor and sequence parallelism, and DeepCompile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trimtab.parameters import sequence_parallel, tensor_parallel
from trimtab.rules.base import Hit, put, remove, rule, shown
from trimtab.rules.batch import engine_passes
from trimtab.rules.subject import Subject
from trimtab.rules.types import BATCH


@rule("PL001", "pipeline-by-configuration", "warning")
def pipeline_by_configuration(subject: Subject) -> Iterable[Hit]:
    """Finds a `pipeline` block meant to split an ordinary model.

    Why is this bad?
        No key of it splits a model: `enabled` and `num_stages` are copied and never read, and the model
        trains whole on every GPU. Only `PipelineModule(layers, num_stages=N)` in code makes a pipeline.
    Example
        {"pipeline": {"enabled": true, "num_stages": 4}, "zero_optimization": {"stage": 1}}
    Use instead
        {"zero_optimization": {"stage": 1}, "trimtab": {"pipeline_stages": 4}}
    Source
        deepspeed/runtime/config.py:272-285; deepspeed/runtime/pipe/module.py:142
    """
    block = subject.block("pipeline")
    meant = [name for name in ("enabled", "num_stages", "stages") if name in block and block[name] != "auto"]
    if meant and (subject.job is None or subject.job.pipeline_stages == 1):
        yield Hit(
            ("pipeline",),
            f"pipeline.{meant[-1]} splits nothing: only PipelineModule in the script makes a "
            "pipeline, and an "
            "ordinary model trains whole on every GPU.",
        )


@rule("PL002", "pipeline-with-sharded-gradients", "error", refused="building")
def pipeline_with_sharded_gradients(subject: Subject) -> Iterable[Hit]:
    """Finds pipeline stages together with ZeRO stage 2 or 3.

    Why is this bad?
        The pipeline engine asserts that gradients are not sharded: it keeps them over all micro batches.
    Example
        {"zero_optimization": {"stage": 2}, "trimtab": {"pipeline_stages": 4}}
    Use instead
        {"zero_optimization": {"stage": 1}, "trimtab": {"pipeline_stages": 4}}
    Fix safety
        Stage 1 is set, the highest that pipelines take: unsafe.
    Source
        deepspeed/runtime/pipe/engine.py:76-77
    """
    if subject.job and subject.job.pipeline_stages > 1 and subject.stage in (2, 3):
        place = subject.place("zero_optimization.stage") or ("zero_optimization",)
        yield Hit(
            place,
            f"pipelines take ZeRO stage 0 or 1, not {subject.stage}.",
            put(("zero_optimization", "stage"), 1),
            at_value=True,
        )


@rule("PL003", "pipeline-with-overlap", "info")
def pipeline_with_overlap(subject: Subject) -> Iterable[Hit]:
    """Finds overlap_comm in a pipeline, which switches it off.

    Why is this bad?
        DeepSpeed warns and disables it.
    Example
        {"zero_optimization": {"stage": 1, "overlap_comm": true}, "trimtab": {"pipeline_stages": 2}}
    Use instead
        {"zero_optimization": {"stage": 1}, "trimtab": {"pipeline_stages": 2}}
    Fix safety
        The key is removed, which changes nothing.
    Source
        deepspeed/runtime/engine.py:2663-2666
    """
    place = subject.place("zero_optimization.overlap_comm")
    if (
        place
        and subject.job
        and subject.job.pipeline_stages > 1
        and subject.on("zero_optimization.overlap_comm")
    ):
        yield Hit(place, "overlap_comm is switched off in a pipeline.", remove(place))


@rule("PL004", "two-tensor-parallel-sizes", "error", refused="building")
def two_tensor_parallel_sizes(subject: Subject) -> Iterable[Hit]:
    """Finds `tp.tp_size` and `autotp_size` that differ.

    Why is this bad?
        The engine raises ValueError: they are two names of one size.
    Example
        {"tensor_parallel": {"autotp_size": 4, "tp": {"tp_size": 2}}}
    Use instead
        {"tensor_parallel": {"autotp_size": 4}}
    Fix safety
        tp_size is removed: unsafe.
    Source
        deepspeed/runtime/engine.py:1020
    """
    auto, size = subject.integer("tensor_parallel.autotp_size"), subject.integer("tensor_parallel.tp.tp_size")
    place = subject.place("tensor_parallel.tp.tp_size")
    if place and auto and size is not None and size not in (1, auto):
        yield Hit(
            place,
            f"tp_size is {size}, but autotp_size is {auto}.",
            remove(place, safety="unsafe"),
            at_value=True,
        )


@rule("PL005", "deepcompile-combination", "error", refused="running")
def deepcompile_combination(subject: Subject) -> Iterable[Hit]:
    """Finds DeepCompile passes that exclude each other.

    Why is this bad?
        `engine.compile()` raises: offload of optimizer states goes neither with ZeRO's own offload nor with
        offload of parameters, offload of activations with neither, and the pass "autotp" stands alone.
    Example
        {"compile": {"deepcompile": true, "offload_opt_states": true}, "zero_optimization": {"stage": 3,
         "offload_optimizer": {"device": "cpu"}}, "optimizer": {"type": "AdamW"}}
    Use instead
        {"compile": {"deepcompile": true, "offload_opt_states": true}, "zero_optimization": {"stage": 3},
         "optimizer": {"type": "AdamW"}}
    Fix safety
        The first of the two is removed: unsafe.
    Source
        deepspeed/compile/init_z3.py:93-104, 147; deepspeed/runtime/engine.py:5834-5844
    """
    if not subject.on("compile.deepcompile"):
        return
    names = ("offload_activation", "offload_opt_states", "offload_parameters")
    on = [name for name in names if subject.on(f"compile.{name}")]
    if "offload_opt_states" in on and subject.offload("optimizer") != "none":
        place = subject.place("compile.offload_opt_states") or ("compile",)
        message = "compile.offload_opt_states is refused together with offload_optimizer: one of them."
        yield Hit(place, message, remove(place, safety="unsafe"))
    if len(on) > 1:
        place = subject.place(f"compile.{on[0]}") or ("compile",)
        yield Hit(
            place,
            f"compile.{on[0]} is refused together with {' and '.join(on[1:])}.",
            remove(place, safety="unsafe"),
        )
    passes = subject.written("compile.passes")
    if isinstance(passes, list) and "autotp" in passes and len(passes) > 1:
        place = subject.place("compile.passes") or ("compile",)
        yield Hit(place, 'the pass "autotp" goes with no other pass.', at_value=True)


@rule("PL006", "deepcompile-without-zero", "warning")
def deepcompile_without_zero(subject: Subject) -> Iterable[Hit]:
    """Finds DeepCompile at stage 0.

    Why is this bad?
        It falls back to torch.compile, with one line in the log.
    Example
        {"compile": {"deepcompile": true}, "zero_optimization": {"stage": 0}}
    Use instead
        {"compile": {"deepcompile": true}, "zero_optimization": {"stage": 3}}
    Fix safety
        The key is removed, which changes nothing.
    Source
        deepspeed/runtime/engine.py:5803
    """
    place = subject.place("compile.deepcompile")
    if place and subject.on("compile.deepcompile") and subject.stage == 0:
        yield Hit(
            place, "deepcompile does nothing at stage 0: it falls back to torch.compile.", remove(place)
        )


@rule("PL010", "sequence-parallel-size", "error", refused="reading")
def sequence_parallel_size(subject: Subject) -> Iterable[Hit]:
    """Finds sequence-parallel sizes that cannot be.

    Why is this bad?
        DeepSpeed divides the world by it as it reads the file: 0 and texts fail there. A size above the
        world leaves a fraction of a GPU, which the engine trains with; Ulysses then refuses to form groups.
    Example
        {"sequence_parallel_size": 0}
    Use instead
        {"sequence_parallel_size": 1}
    Source
        deepspeed/runtime/config.py:468; deepspeed/runtime/sequence_parallel/parallel_state_sp.py:31
    """
    if "sequence_parallel_size" not in subject.raw:
        return
    value, place = subject.raw["sequence_parallel_size"], ("sequence_parallel_size",)
    if value is True:
        return
    # the division's error was caught, and the world counted as 1; three batch keys do not multiply to that
    old = not subject.since("0.18.7") and not isinstance(value, float)
    forgiven = old and not all(key in subject.raw for key in BATCH)
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or value < 1
        or not float(value).is_integer()
    ):
        yield Hit(
            place,
            f"sequence_parallel_size is {shown(value)}, but must be a whole number above 0.",
            at_value=True,
            refused="building" if forgiven or engine_passes(subject) else "reading",
        )
    elif subject.world.size is not None and value > subject.world.size:
        message = f"sequence_parallel_size {value} is more than the {subject.world.size} GPUs there are."
        trains = engine_passes(subject)
        yield Hit(
            place,
            message,
            at_value=True,
            severity="warning" if trains else "error",
            refused=None if trains else "reading",
        )


@rule("PL011", "mesh-that-does-not-multiply", "error", refused="building")
def mesh_that_does_not_multiply(subject: Subject) -> Iterable[Hit]:
    """Finds data_parallel_size x sequence_parallel_size other than the number of GPUs.

    Why is this bad?
        The device mesh cannot be formed. `data_parallel_size` alone is never read.
    Example
        With `--gpus-per-node 8 --nodes 1`:
        {"data_parallel_size": 8, "sequence_parallel_size": 2}
    Use instead
        With `--gpus-per-node 8 --nodes 1`:
        {"data_parallel_size": 4, "sequence_parallel_size": 2}
    Fix safety
        data_parallel_size becomes what is left: unsafe.
    Source
        deepspeed/__init__.py:543-546
    """
    data, place = subject.raw.get("data_parallel_size"), ("data_parallel_size",)
    if "data_parallel_size" not in subject.raw:
        return
    if "sequence_parallel_size" not in subject.raw:
        yield Hit(
            place,
            "data_parallel_size is read only together with sequence_parallel_size.",
            remove(place),
            severity="warning",
            refused=None,
        )
        return
    sequence, size = subject.raw["sequence_parallel_size"], subject.world.size
    if (
        size
        and isinstance(data, int)
        and isinstance(sequence, int)
        and sequence > 0
        and data * sequence != size
    ):
        mend = put(place, size // sequence) if size % sequence == 0 else None
        yield Hit(
            place,
            f"{data} x {sequence} (data x sequence parallel) = {data * sequence}, but there are {size} GPUs.",
            mend,
            at_value=True,
        )


@rule("PL012", "gpu-direct-storage-without-cuda", "info")
def gds(subject: Subject) -> Iterable[Hit]:
    """Finds `aio.use_gds`, which only CUDA with GPUDirect Storage has.

    Why is this bad?
        Other accelerators refuse it as the file is read; without the cuFile driver it fails later.
    Example
        {"aio": {"use_gds": true}}
    Use instead
        {"aio": {"use_gds": false}}
    Source
        deepspeed/runtime/swap_tensor/aio_config.py:39
    """
    place = subject.place("aio.use_gds")
    if place and isinstance(subject.written("aio"), Mapping) and subject.on("aio.use_gds"):
        yield Hit(place, "use_gds needs CUDA and the GPUDirect Storage driver.")


@rule("PL013", "batch-that-counts-split-layers", "warning")
def batch_that_counts_split_layers(subject: Subject) -> Iterable[Hit]:
    """Finds train_batch_size beside tensor parallelism, where it says more samples than there are.

    Why is this bad?
        The ranks of a tensor-parallel group share their samples, and the engine counts each of them in
        train_batch_size: a step trains on a part of the samples that the file states.
    Example
        {"train_batch_size": 32, "train_micro_batch_size_per_gpu": 2, "tensor_parallel": {"autotp_size": 2}}
    Use instead
        {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4,
         "tensor_parallel": {"autotp_size": 2}}
    Source
        deepspeed/runtime/config.py:455-475
    """
    size, train = subject.integer("tensor_parallel.autotp_size") or 1, subject.raw.get(BATCH[0])
    if size > 1 and isinstance(train, int) and not isinstance(train, bool) and train % size == 0:
        yield Hit(
            (BATCH[0],),
            f"train_batch_size is {train}, but a step has {train // size} samples: {size} tensor-parallel "
            "ranks share theirs. State train_micro_batch_size_per_gpu and gradient_accumulation_steps.",
            at_value=True,
        )


@rule("PL014", "job-that-does-not-split", "warning")
def job_that_does_not_split(subject: Subject) -> Iterable[Hit]:
    """Finds tensor or sequence parallelism for a job that it refuses, or trains otherwise than one GPU would.

    Why is this bad?
        AutoTP refuses GPT-2 and plans with styles that it does not know, drops peft's adapters with the
        modules that hold them, and at stage 0 in 16 bits every optimizer but DeepSpeed's Adam clips by the
        norm of one rank's shard. Ulysses reads num_key_value_heads, which not every config has, takes no
        eager attention, and drops the masks of sliding windows.
    Example
        {"zero_optimization": {"stage": 1}, "tensor_parallel": {"autotp_size": 2},
         "trimtab": {"model": "gpt2"}}
    Use instead
        {"zero_optimization": {"stage": 1}, "trimtab": {"model": "gpt2"}}
    Source
        deepspeed/module_inject/auto_tp.py:292; deepspeed/module_inject/tp_plan_converter.py:44;
        deepspeed/runtime/fp16/unfused_optimizer.py:214;
        deepspeed/runtime/sequence_parallel/ulysses_sp.py:468, 512, 546
    """
    config, model = subject.typed, subject.model
    if config is None or model is None:
        return
    for key, why_not in (
        ("tensor_parallel.autotp_size", tensor_parallel.why_not),
        ("sequence_parallel_size", sequence_parallel.why_not),
    ):
        place, size = subject.place(key), subject.integer(key)
        reason = why_not(config, model) if place is not None and size is not None and size > 1 else None
        if place is not None and reason is not None:
            yield Hit(place, f"{model.name} does not train over {size} ranks: {reason}.", at_value=True)
