"""What transformers' modules and DeepSpeed's engine cost the host: tiny models, two depths each.

The device has next to nothing to do, so the time of a pass is the host's; the difference between two depths
is that of the layers between them.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from importlib.util import find_spec
from typing import Any

from trimtab.probe.notes import Notes

DEPTHS = (4, 12)
STEPS = 6
SAMPLES_A_BATCH, LENGTH, WIDTH, WORDS = 1, 16, 64, 256
STAGES = (0, 1, 2, 3)


def measure_models(notes: Notes) -> None:
    """Rows of kind ``model host``: passes of models of four families, without an engine."""
    import torch

    if find_spec("transformers") is None:
        notes.skip("model host", "transformers is not installed")
        return
    for family in ("llama", "gpt2", "bert", "t5"):
        for depth in DEPTHS:
            model, batch = _model(family, depth, notes.device)
            operators = _operators(model, batch)
            seconds: dict[str, list[float]] = {"forward": [], "backward": []}
            for _ in range(STEPS):
                notes.wait()
                began = time.perf_counter()
                loss = model(**batch).loss
                seconds["forward"].append(time.perf_counter() - began)
                notes.wait()
                began = time.perf_counter()
                loss.backward()
                seconds["backward"].append(time.perf_counter() - began)
                model.zero_grad()
            for phase, samples in seconds.items():
                notes.add(
                    "model host",
                    samples[2:],
                    family=family,
                    layers=depth,
                    phase=phase,
                    operators=operators[phase],
                    tensors=len(list(model.parameters())),
                    modules=len(list(model.modules())),
                )
            del model, batch, loss
    gc.collect()
    if notes.on_gpu:
        torch.cuda.empty_cache()


def measure_engine(notes: Notes, *, world_size: int, built: bool) -> None:
    """Rows of kind ``engine host``: the phases of a step under each ZeRO stage, in this world.

    Args:
        built: DeepSpeed's fused Adam is compiled already; torch's own stands in for it otherwise.
    """
    for package in ("deepspeed", "transformers"):
        if find_spec(package) is None:
            notes.skip("engine host", f"{package} is not installed")
            return
    for stage in STAGES:
        for depth in DEPTHS:
            _engine(notes, stage, depth, world_size, built)


def _engine(notes: Notes, stage: int, depth: int, world_size: int, built: bool) -> None:
    import deepspeed
    import torch

    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": SAMPLES_A_BATCH,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-5, "torch_adam": not built}},
        "gradient_clipping": 1.0,
        "steps_per_print": 10**9,
    }
    model, batch = _model("llama", depth, notes.device)
    tensors, modules = len(list(model.parameters())), len(list(model.modules()))
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    seconds: dict[str, list[float]] = {"forward": [], "backward": [], "step": []}
    for _ in range(STEPS):
        for phase in seconds:
            notes.wait()
            began = time.perf_counter()
            if phase == "forward":
                loss = engine(**batch).loss
            elif phase == "backward":
                engine.backward(loss)
            else:
                engine.step()
            notes.wait()
            seconds[phase].append(time.perf_counter() - began)
    what = {"stage": stage, "layers": depth, "tensors": tensors, "modules": modules, "world": world_size}
    for phase, samples in seconds.items():
        notes.add("engine host", samples[2:], phase=phase, fused=built, **what)
    engine.destroy()
    del engine, model, loss
    gc.collect()
    if notes.on_gpu:
        torch.cuda.empty_cache()


def _model(family: str, depth: int, device: str) -> tuple[Any, dict[str, Any]]:
    import torch
    import transformers

    if family == "llama":
        config: Any = transformers.LlamaConfig(
            hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=depth, num_attention_heads=4,
            vocab_size=WORDS,
        )  # fmt: skip
        model: Any = transformers.LlamaForCausalLM(config)
    elif family == "gpt2":
        config = transformers.GPT2Config(
            n_embd=WIDTH, n_layer=depth, n_head=4, vocab_size=WORDS, n_positions=64,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
    elif family == "bert":
        config = transformers.BertConfig(
            hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=depth, num_attention_heads=4,
            vocab_size=WORDS,
        )  # fmt: skip
        model = transformers.BertForMaskedLM(config)
    else:
        config = transformers.T5Config(
            d_model=WIDTH, d_ff=2 * WIDTH, num_layers=depth, num_heads=4, d_kv=16, vocab_size=WORDS,
            decoder_start_token_id=0, pad_token_id=0,
        )  # fmt: skip
        model = transformers.T5ForConditionalGeneration(config)
    model = model.to(device=device, dtype=torch.bfloat16).train()
    tokens = torch.randint(1, WORDS, (SAMPLES_A_BATCH, LENGTH), device=device)
    return model, {"input_ids": tokens, "labels": tokens}


def _operators(model: Any, batch: dict[str, Any]) -> dict[str, int]:
    """How many operators that launch a kernel a forward and a backward pass dispatch."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: Counter[str] = Counter()
    phase = "forward"

    class Count(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if not func.is_view:
                seen[phase] += 1
            return func(*args, **(kwargs or {}))

    with Count():
        loss = model(**batch).loss
        phase = "backward"
        loss.backward()
    model.zero_grad()
    return dict(seen)
