"""BLOOM's forward pass, as transformers 5.17 writes it (models/bloom/modeling_bloom.py)."""

from __future__ import annotations

from functools import partial

from trimtab.cost import operators as ops
from trimtab.cost.backward import BLOOM_GELU
from trimtab.cost.machine import Machine, Tensor
from trimtab.cost.net import Net

GELU_BACKWARD_TENSORS = 4
"""What ``bloom_gelu_back`` holds at its highest, beside one that is as large as its outcome."""


def body(net: Net) -> Tensor:
    """The hidden states after the last norm: batch x sequence x width."""
    m, length = net.m, net.job.sequence_length
    words = net.words("transformer.word_embeddings", net.tokens)
    x = net.norm(words, "transformer.word_embeddings_layernorm")
    padding = m.tensor(net.tokens, ops.FLOAT)
    alibi = m.tensor(net.model.heads * net.tokens)
    net.given = (alibi, m.tensor(net.tokens * length))
    for path in net.layers("transformer.h"):
        x = net.layer(partial(_layer, net, path), x)
    x = net.norm(x, "transformer.ln_f")
    del words, padding
    return x


def _layer(net: Net, path: str, x: Tensor) -> Tensor:
    after = bool(net.model.hf["apply_residual_connection_post_layernorm"])
    normed = net.norm(x, f"{path}.input_layernorm")
    x = net.module(partial(_attention, net, path, normed), normed if after else x)
    normed = net.norm(x, f"{path}.post_attention_layernorm")
    return net.module(partial(_feed_forward, net, path, normed), normed if after else x)


def _attention(net: Net, path: str, normed: Tensor, residual: Tensor) -> Tensor:
    m, model = net.m, net.model
    packed = net.linear(normed, f"{path}.self_attention.query_key_value")
    # each a select, whose gradient is as large as all three
    parts = (ops.cut(m, packed, packed.numel // 3) for _ in range(3))
    q, k, v = (ops.copy(m, part) for part in parts)  # head by head
    heads, length, width = net.batch * model.heads, net.job.sequence_length, model.head_dim
    size = heads * length * length
    raw = m.op(
        size,
        (q, k),
        (q.bytes, k.bytes),
        item=q.item,
        keep=(q.storage, k.storage),
        flops=2 * size * width,
        kernel="product",
        shape=(heads, length, width, length, q.item),
    )
    scores = ops.masked(m, raw)
    wide = ops.cast(m, scores, ops.FLOAT) if not m.fp16 else scores
    soft = ops.softmax(m, wide, ops.FLOAT)
    del wide
    probabilities = ops.cast(m, soft, q.item)
    del soft
    net.attention_weights = dropped = net.dropout(probabilities, model.attention_dropout)
    out = m.op(
        q.numel,
        (dropped, v),
        (dropped.bytes, v.bytes),
        item=q.item,
        keep=(dropped.storage, v.storage),
        flops=2 * size * width,
        kernel="product",
        shape=(heads, length, length, width, q.item),
    )
    out = net.linear(ops.copy(m, out), f"{path}.self_attention.dense")
    out = ops.add(m, residual, ops.dropout(m, out, model.residual_dropout))
    del raw, scores, probabilities
    return out


def _feed_forward(net: Net, path: str, normed: Tensor, residual: Tensor) -> Tensor:
    inner = net.linear(normed, f"{path}.mlp.dense_h_to_4h")
    inner = net.module(partial(_gelu, net.m), inner)
    out = net.linear(inner, f"{path}.mlp.dense_4h_to_h")
    return ops.add(net.m, residual, ops.dropout(net.m, out, net.model.residual_dropout))


def _gelu(m: Machine, x: Tensor) -> Tensor:
    """``GeLUFunction``: keeps its input, and is written out in elementary operators both ways."""
    held = [m.tensor(x.numel) for _ in range(3)]  # x / 2, and two factors
    del held
    m.works("moving", 2 * x.bytes, runs=5)
    m.works("moving", 3 * x.bytes, runs=3)
    return m.op(
        x.numel,
        (x,),
        (x.bytes,),
        item=x.item,
        keep=(x.storage,),
        scratch=(x.bytes,) * GELU_BACKWARD_TENSORS,
        kernel=BLOOM_GELU,
    )
