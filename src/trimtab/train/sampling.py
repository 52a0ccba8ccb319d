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
                logits = engine(input_ids=ids[:, -limit:]).logits[0, -1].float().cpu()
                best = torch.topk(logits / TEMPERATURE, min(TOP_TOKENS, logits.numel()))
                choice = torch.multinomial(torch.softmax(best.values, -1), 1, generator=random)
                token = best.indices[choice].to(ids.device)
                if int(token) == tokenizer.eos_token_id:
                    break
                ids = torch.cat((ids, token[None]), dim=1)
    finally:
        module.train()
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))
