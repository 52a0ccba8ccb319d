"""Which attention kernel a card takes in a phantom, and how its output lies in memory."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

BATCH, HEADS, LENGTH, WIDTH = 2, 4, 32, 16


def queries(*, by_head: bool) -> torch.Tensor:
    if by_head:  # as partial rotary's concatenation leaves them
        return torch.zeros(BATCH, HEADS, LENGTH, WIDTH, dtype=torch.bfloat16)
    return torch.zeros(BATCH, LENGTH, HEADS, WIDTH, dtype=torch.bfloat16).transpose(1, 2)


def output(card: tuple[int, int], query: torch.Tensor, **more: object) -> torch.Tensor:
    from trimtab.rehearse.attention import of_card

    return of_card(card)(query, query, query, **more)


WINDOW = torch.ones(BATCH, 1, LENGTH, LENGTH, dtype=torch.bool).tril().triu(-4)


@pytest.mark.parametrize("card", [(9, 0), (10, 0)])
@pytest.mark.parametrize("by_head", [True, False])
def test_under_a_mask_cudnn_leaves_its_output_as_the_queries_lie(card, by_head) -> None:
    """Seen on an H200: strides of the output equal those of the queries."""
    query = queries(by_head=by_head)
    assert output(card, query, attn_mask=WINDOW).stride() == query.stride()


@pytest.mark.parametrize("card", [(8, 0), (8, 9), (12, 0)])
def test_other_cards_take_the_memory_efficient_kernel_there(card) -> None:
    """Its output lies token by token (attention.cu, ``_efficient_attention_forward``)."""
    for by_head in (True, False):
        assert output(card, queries(by_head=by_head), attn_mask=WINDOW).transpose(1, 2).is_contiguous()


def test_a_mask_that_trains_is_not_for_cudnn() -> None:
    bias = torch.zeros(BATCH, HEADS, LENGTH, LENGTH, dtype=torch.bfloat16, requires_grad=True)
    found = output((9, 0), queries(by_head=True), attn_mask=bias)
    assert found.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("card", [(8, 0), (9, 0)])
def test_without_a_mask_flash_leaves_its_output_as_the_queries_lie(card) -> None:
    query = queries(by_head=True)
    assert output(card, query, is_causal=True).stride() == query.stride()
