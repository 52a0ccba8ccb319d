"""Falcon's forward pass, as transformers 5.17 writes it (models/falcon/modeling_falcon.py)."""

from __future__ import annotations

from functools import partial

from trimtab.cost import attention as att
from trimtab.cost import operators as ops
from trimtab.cost.backward import PASS
from trimtab.cost.machine import Tensor
from trimtab.cost.net import Net


def body(net: Net) -> Tensor:
    """The hidden states after the last norm: batch x sequence x width."""
    m, model, length = net.m, net.model, net.job.sequence_length
    x = words = net.words("transformer.word_embeddings", net.tokens)
    pairs = net.tokens * length
    if model.hf["alibi"]:  # the mask has a part for every head, and is made of the alibi in between
        alibi = m.tensor(model.heads * net.tokens)
        net.given = (alibi, m.tensor(model.heads * pairs))
    elif net.attention == "eager":
        net.given = (m.tensor(pairs),)
    else:  # ``allow_is_causal_skip=False``: a boolean one, that samples share
        net.given = (m.tensor(length * length, ops.MASK),)
    for path in net.layers("transformer.h"):
        x = net.layer(partial(_layer, net, path, net.given), x)
    x = net.norm(x, "transformer.ln_f")
    del words
    return x


def _layer(net: Net, path: str, given: tuple[Tensor, ...], x: Tensor) -> Tensor:
    m, model = net.m, net.model
    residual = x
    two = f"{path}.ln_attn.weight" in net.weights
    normed = net.norm(x, f"{path}.ln_attn" if two else f"{path}.input_layernorm")
    forward = net.norm(x, f"{path}.ln_mlp") if two else normed
    attended = net.module(partial(_attention, net, path, given), normed)
    if not model.parallel_residual:
        residual = ops.add(m, residual, ops.dropout(m, attended, model.attention_dropout))
        forward = net.norm(residual, f"{path}.post_attention_layernorm")
    out = net.module(partial(_feed_forward, net, path), forward)
    if model.parallel_residual:  # in place
        out = m.op(out.numel, (out, attended), (PASS, PASS), item=out.item, view_of=out)
    return ops.add(m, residual, ops.dropout(m, out, model.residual_dropout))


def _feed_forward(net: Net, path: str, x: Tensor) -> Tensor:
    inner = net.activation(net.linear(x, f"{path}.mlp.dense_h_to_4h"))
    return net.linear(inner, f"{path}.mlp.dense_4h_to_h")


def _attention(net: Net, path: str, given: tuple[Tensor, ...], x: Tensor) -> Tensor:
    m, model = net.m, net.model
    packed = net.linear(x, f"{path}.self_attention.query_key_value")
    q, k, v = _heads(net, packed)
    alibi = bool(model.hf["alibi"])
    if not alibi:
        q, k = net.rotary(q, k)
    shape = att.Shape(
        batch=net.batch,
        heads=model.heads,
        kv_heads=k.numel // (net.tokens * model.head_dim),
        queries=net.job.sequence_length,
        keys=net.job.sequence_length,
        head_dim=model.head_dim,
    )
    if net.attention == "eager":
        out = _eager(net, q, k, v, shape, alibi=alibi)
    elif shape.kv_heads != shape.heads:
        out = att.plain(m, q, k, v, shape, broadcast=True)
    elif alibi:
        out = att.biased(m, q, k, v, shape, given[1])
    else:
        out = att.masked(m, q, k, v, shape)
    return net.linear(out, f"{path}.self_attention.dense")


def _eager(net: Net, q: Tensor, k: Tensor, v: Tensor, shape: att.Shape, *, alibi: bool) -> Tensor:
    """Scaled in place; with alibi in fp32, and what that is made of has names until the end."""
    m = net.m
    shared = shape.kv_heads != shape.heads  # one key head, which each product broadcasts
    k = att.repeat_keys(m, k, shape, view=True) if shared else k
    scores = raw = att.raw_scores(m, q, k, shape)
    wide = None
    if alibi:
        wide = ops.cast(m, raw, ops.FLOAT)
        scores = ops.masked(m, wide)
    else:
        del raw
    scores = m.op(scores.numel, (scores,), (scores.bytes,), item=scores.item, view_of=scores)
    masked = ops.masked(m, scores)  # an argument, until softmax has cast it and is done
    probabilities = ops.softmax(m, ops.cast(m, masked, q.item))
    del masked
    if alibi:
        probabilities = net.dropout(probabilities, net.model.attention_dropout)
    else:
        del scores
    net.attention_weights = probabilities
    v = att.repeat_keys(m, v, shape, view=True) if shared else v
    out = ops.copy(m, att.weighted(m, probabilities, v, shape))  # head beside head again
    del wide
    return out


def _heads(net: Net, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``_split_heads``: slices of what is packed, whose gradients are as large as all of it."""
    m, model = net.m, net.model
    queries, keys = net.tokens * model.heads * model.head_dim, net.tokens * model.kv_heads * model.head_dim

    def part(numel: int, *, copied: bool) -> Tensor:
        if not copied:
            return ops.cut(m, packed, numel)
        return m.op(numel, (packed,), (packed.bytes,), item=packed.item)

    if not model.hf["new_decoder_architecture"]:
        shared = model.kv_heads == 1  # a list of places, which copies
        return part(queries, copied=False), part(keys, copied=shared), part(keys, copied=shared)
    q = ops.copy(m, part(queries, copied=False))
    k, v = (part(keys, copied=True) for _ in range(2))
    shape = att.Shape(
        batch=net.batch, heads=model.heads, kv_heads=model.kv_heads, queries=0, keys=0, head_dim=0
    )
    return q, att.repeat_keys(m, k, shape), att.repeat_keys(m, v, shape)
