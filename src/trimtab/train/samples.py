"""Random tokens of the right shape for each task: for measuring memory and speed, where text is nothing."""

from __future__ import annotations

from typing import Any

from trimtab.job import Job

SPECIAL_TOKENS = 5
"""Ids below this are padding, start and end marks in the catalogue's vocabularies."""


def random_batch(job: Job, hf: Any, *, samples: int, device: Any) -> dict[str, Any]:
    """One micro batch of ``samples`` random sequences with labels, as the task's model takes it."""
    import torch

    def tokens(length: int) -> Any:
        first = min(SPECIAL_TOKENS, hf.vocab_size - 1)
        return torch.randint(first, hf.vocab_size, (samples, length), device=device)

    inputs = tokens(job.sequence_length)
    if job.task == "sequence-classification":
        return {"input_ids": inputs, "labels": torch.randint(0, hf.num_labels, (samples,), device=device)}
    if job.task == "token-classification":
        return {"input_ids": inputs, "labels": torch.randint(0, hf.num_labels, inputs.shape, device=device)}
    if job.task == "question-answering":
        start = torch.randint(0, job.sequence_length, (samples,), device=device)
        return {"input_ids": inputs, "start_positions": start, "end_positions": start}
    if job.target_length is not None:
        return {"input_ids": inputs, "labels": tokens(job.target_length)}
    return {"input_ids": inputs, "labels": inputs.clone()}
