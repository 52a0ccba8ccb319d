"""Text from a causal model that is still in its engine, sharded or not."""

from __future__ import annotations

from typing import Any

TOP_TOKENS = 40
TEMPERATURE = 0.8


def sample_text(engine: Any, tokenizer: Any, prompt: str, *, tokens: int, limit: int, seed: int) -> str:
    """``prompt`` continued by ``tokens`` tokens; every rank calls it and gets the same text.

    Each step runs the whole model once, which at stage 3 gathers it layer by layer; ``limit`` is the longest
    sequence that the model takes.
    """
    import torch

    module = engine.module
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"][:, -(limit // 2) :]
    if not ids.shape[1]:
        return ""
    ids = ids.to(engine.device)
    random = torch.Generator().manual_seed(seed)
    module.eval()
    try:
        with torch.no_grad():
            for _ in range(tokens):
                logits = _whole(engine(input_ids=ids[:, -limit:]).logits[0, -1], module).float().cpu()
                best = torch.topk(logits / TEMPERATURE, min(TOP_TOKENS, logits.numel()))
                choice = torch.multinomial(torch.softmax(best.values, -1), 1, generator=random)
                token = best.indices[choice].to(ids.device)
                if int(token) == tokenizer.eos_token_id:
                    break
                ids = torch.cat((ids, token[None]), dim=1)
    finally:
        module.train()
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


def _whole(logits: Any, module: Any) -> Any:
    """Logits over the whole vocabulary, where tensor parallelism leaves each rank those of its own part."""
    size = module.config.get_text_config().vocab_size
    if logits.shape[-1] == size:
        return logits
    import torch
    import torch.distributed as dist
    from deepspeed.utils import groups

    group = groups.get_tensor_model_parallel_group()
    widest = -(-size // dist.get_world_size(group))
    parts = [torch.empty_like(logits).resize_(widest) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, torch.nn.functional.pad(logits, (0, widest - len(logits))), group=group)
    # the first ranks hold one row more where the vocabulary does not divide (module_inject/tp_shard.py)
    more = size % len(parts) or len(parts)
    return torch.cat([part[: widest if rank < more else widest - 1] for rank, part in enumerate(parts)])
