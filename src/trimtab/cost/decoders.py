"""The forward passes of the causal families, written as transformers 5.17 writes them.

Local names live as long as they do there: a tensor ends when its last name and the last operator that kept it
are gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from trimtab.cost import attention as att
from trimtab.cost import bloom, falcon
from trimtab.cost import operators as ops
from trimtab.cost.backward import PASS
from trimtab.cost.machine import Tensor
from trimtab.cost.net import CONCATENATES, INDEX_BYTES, NO_TABLES, Net
from trimtab.parameters import llama_like


def body(net: Net) -> Tensor:
    """The hidden states after the last norm, for any known causal family: batch x sequence x width."""
    families = {
        "gpt2": _gpt2,
        "gptj": _gptj,
        "gpt_neox": _neox,
        "phi": _phi,
        "opt": _opt,
        "gpt_neo": _gpt_neo,
        "bloom": bloom.body,
        "falcon": falcon.body,
    }
    forward = families.get(net.model.model_type, _llama)
    net.m.enter()
    if net.model.model_type not in ("bloom", "falcon"):  # these make their own
        net.given = tuple(_masks(net))
    out = forward(net)
    net.given, net.returned, net.tables = (), None, NO_TABLES
    return net.m.leave(out)


def _masks(net: Net) -> Iterator[Tensor]:
    """The masks that all layers share, one for each kind of layer that needs one (masking_utils.py)."""
    model, length = net.model, net.job.sequence_length
    if net.attention == "eager":
        yield net.m.tensor(net.tokens * length)
        if 0 < len(model.sliding_layers) < model.layers and model.model_type != "gpt_neo":
            yield net.m.tensor(net.tokens * length)
    elif net.looks_through_window:
        yield net.m.tensor(length * length, ops.MASK)


def _shape(net: Net) -> att.Shape:
    """Sizes of the self-attention; what is concatenated after rotating lies head by head."""
    model, length = net.model, net.job.sequence_length
    return att.Shape(
        batch=net.batch,
        heads=model.heads,
        kv_heads=model.kv_heads,
        queries=length,
        keys=length,
        head_dim=model.head_dim,
        dropout=model.attention_dropout,
        by_head=model.model_type in CONCATENATES,
    )


# -- LLaMA and its kin: models/llama, mistral, qwen2, qwen3, gemma to gemma3, phi3, starcoder2, stablelm, olmo


def _llama(net: Net) -> Tensor:
    root = llama_like.prefix(net.model, net.job.task)
    embedded = net.words(f"{root}.embed_tokens", net.tokens)
    x = ops.dropout(net.m, embedded, net.model.embedding_dropout)
    layer = _parallel_layer if net.model.parallel_residual else _llama_layer
    for path in net.layers(f"{root}.layers"):
        x = net.layer(partial(layer, net, path), x)
    return net.norm(x, f"{root}.norm")


def _llama_layer(net: Net, path: str, x: Tensor) -> Tensor:
    m, model = net.m, net.model
    post = model.model_type in ("gemma2", "gemma3_text", "olmo2", "olmo3")
    before = model.model_type not in ("olmo2", "olmo3")
    residual = x
    x = net.norm(x, f"{path}.input_layernorm") if before else x
    x = net.module(partial(_llama_attention, net, path), x)
    if post:
        x = net.norm(x, f"{path}.post_attention_layernorm")
    x = ops.add(m, residual, _residual(net, x))
    residual = x
    if before:
        name = "pre_feedforward_layernorm" if post else "post_attention_layernorm"
        x = net.norm(x, f"{path}.{name}")
    x = net.module(partial(_llama_mlp, net, path), x)
    if post:
        x = net.norm(x, f"{path}.post_feedforward_layernorm")
    if model.model_type == "stablelm":
        return ops.add(m, net.dropout(x, model.residual_dropout), residual)
    return ops.add(m, residual, _residual(net, x))


def _residual(net: Net, x: Tensor) -> Tensor:
    """What comes before the residual sum: dropout, a module in Phi-3 and a function in StarCoder 2; Granite's
    multiplier; elsewhere nothing."""
    if net.model.model_type == "phi3":
        return net.dropout(x, net.model.residual_dropout)
    if net.model.model_type == "starcoder2":
        return ops.dropout(net.m, x, net.model.residual_dropout)
    return ops.scale(net.m, x) if net.model.model_type == "granite" else x


def _parallel_layer(net: Net, path: str, x: Tensor) -> Tensor:
    """StableLM's parallel form: attention and feed-forward read the same norm."""
    m = net.m
    normed = net.norm(x, f"{path}.input_layernorm")
    attention = net.module(partial(_llama_attention, net, path), normed)
    forward = net.module(partial(_llama_mlp, net, path), normed)
    forward = net.dropout(forward, net.model.residual_dropout)
    return ops.add(m, ops.add(m, x, attention), forward)


def _llama_attention(net: Net, path: str, x: Tensor) -> Tensor:
    model = net.model
    q, k, v = _llama_qkv(net, path, x)
    if model.model_type == "gemma3_text":
        q, k = net.norm(q, f"{path}.self_attn.q_norm"), net.norm(k, f"{path}.self_attn.k_norm")
    if f"{path}.self_attn.q_layernorm.norms.0.weight" in net.weights:
        q = _norm_by_head(net, q, f"{path}.self_attn.q_layernorm", model.heads)
        k = _norm_by_head(net, k, f"{path}.self_attn.k_layernorm", model.kv_heads)
    share = model.rotary_dim / model.head_dim
    q, k = net.rotary(q, k, share)
    out = net.attend(q, k, v, _shape(net))
    output = "dense" if f"{path}.self_attn.dense.weight" in net.weights else "o_proj"
    return net.linear(out, f"{path}.self_attn.{output}")


def _llama_qkv(net: Net, path: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    model = net.model
    if model.model_type != "phi3":
        q, k, v = (_projected(net, f"{path}.self_attn", name, x) for name in "qkv")
        if model.hf.get("clip_qkv") is not None:
            q, k, v = (ops.clamp(net.m, one) for one in (q, k, v))
        return q, k, v
    packed = net.linear(x, f"{path}.self_attn.qkv_proj")
    rows = net.tokens * model.head_dim
    parts = (rows * model.heads, rows * model.kv_heads, rows * model.kv_heads)
    return tuple(ops.cut(net.m, packed, part) for part in parts)  # type: ignore[return-value]


def _projected(net: Net, path: str, name: str, x: Tensor) -> Tensor:
    out, norm = net.linear(x, f"{path}.{name}_proj"), net.weights.get(f"{path}.{name}_norm.weight")
    normed = norm is not None and net.model.model_type != "gemma3_text"
    by_head = norm is not None and norm.numel == net.model.head_dim  # any order of the heads will do for it
    if normed:
        out = net.norm(out, f"{path}.{name}_norm")
    return out if name == "v" or by_head else net.by_head(out)


def _norm_by_head(net: Net, x: Tensor, path: str, heads: int) -> Tensor:
    """``StableLmLayerNormPerHead``: every head has a norm of its own."""
    normed = [
        net.norm(one, f"{path}.norms.{head}")
        for head, one in enumerate(ops.split(net.m, x, *[x.numel // heads] * heads))
    ]
    return net.m.op(x.numel, tuple(normed), (PASS,) * heads, item=x.item)


def _llama_mlp(net: Net, path: str, x: Tensor) -> Tensor:
    model = net.model
    if model.model_type == "phi3":
        packed = net.linear(x, f"{path}.mlp.gate_up_proj")
        gate, up = ops.split(net.m, packed, packed.numel // 2, packed.numel // 2)
        inner = ops.mul(net.m, up, net.activation(gate))
        del packed, gate, up
    elif model.gated_mlp:
        inner = net.gated(x, f"{path}.mlp.gate_proj", f"{path}.mlp.up_proj")
    else:
        inner = net.activation(net.linear(x, f"{path}.mlp.c_fc"))
        return net.linear(inner, f"{path}.mlp.c_proj")
    return net.linear(inner, f"{path}.mlp.down_proj")


# -- GPT-2 and GPT-Neo: models/gpt2, models/gpt_neo ----------------------------------------------------


def _gpt2(net: Net) -> Tensor:
    m, model = net.m, net.model
    words = net.words("transformer.wte", net.tokens)
    places = net.embedding("transformer.wpe", net.job.sequence_length)
    x = net.dropout(ops.add(m, words, places), model.embedding_dropout)
    for path in net.layers("transformer.h"):
        x = net.layer(partial(_gpt2_layer, net, path), x)
    return net.norm(x, "transformer.ln_f")


def _gpt2_layer(net: Net, path: str, x: Tensor) -> Tensor:
    m = net.m
    residual = x
    x = net.norm(x, f"{path}.ln_1")
    attended = net.module(partial(_gpt2_attention, net, path), x)
    x = ops.add(m, attended, residual)
    residual = x
    x = net.norm(x, f"{path}.ln_2")
    return ops.add(m, residual, net.module(partial(_gpt2_mlp, net, path), x))


def _gpt2_attention(net: Net, path: str, x: Tensor) -> Tensor:
    model = net.model
    q, k, v = ops.split(net.m, net.linear(x, f"{path}.attn.c_attn"), *[net.tokens * model.hidden_size] * 3)
    out = net.attend(q, k, v, _shape(net))
    return net.dropout(net.linear(out, f"{path}.attn.c_proj"), model.residual_dropout)


def _gpt2_mlp(net: Net, path: str, x: Tensor) -> Tensor:
    x = _two_layers(net, f"{path}.mlp.c_fc", f"{path}.mlp.c_proj", x)
    return net.dropout(x, net.model.residual_dropout)


def _two_layers(net: Net, first: str, second: str, x: Tensor) -> Tensor:
    """A feed-forward block: two linear layers with the activation between them."""
    return net.linear(net.activation(net.linear(x, first)), second)


def _gpt_neo(net: Net) -> Tensor:
    m, model = net.m, net.model
    words = net.words("transformer.wte", net.tokens)
    places = net.embedding("transformer.wpe", net.job.sequence_length)
    x = net.dropout(ops.add(m, words, places), model.embedding_dropout)
    for path in net.layers("transformer.h"):
        x = net.layer(partial(_gpt_neo_layer, net, path), x)
    return net.norm(x, "transformer.ln_f")


def _gpt_neo_layer(net: Net, path: str, x: Tensor) -> Tensor:
    m = net.m
    residual, inner = x, f"{path}.attn.attention"
    x = net.norm(x, f"{path}.ln_1")
    out = net.module(partial(net.module, partial(_gpt_neo_attention, net, inner)), x)
    x = ops.add(m, out, residual)
    del out
    residual = x
    x = net.norm(x, f"{path}.ln_2")
    return ops.add(m, residual, net.module(partial(_gpt2_mlp, net, path), x))


def _gpt_neo_attention(net: Net, path: str, x: Tensor) -> Tensor:
    q, k, v = (net.linear(x, f"{path}.{name}_proj") for name in "qkv")
    # models/gpt_neo: scores in fp32, a causal mask by torch.where
    out, net.attention_weights = att.eager(
        net.m, q, k, v, _shape(net), score_item=ops.FLOAT, dropout=net.dropout, chosen=True
    )
    del q, k, v
    return net.dropout(net.linear(out, f"{path}.out_proj"), net.model.residual_dropout)


# -- GPT-J: models/gptj --------------------------------------------------------------------------------


def _gptj(net: Net) -> Tensor:
    model = net.model
    x = net.dropout(net.words("transformer.wte", net.tokens), model.embedding_dropout)
    for path in net.layers("transformer.h"):
        x = net.layer(partial(_gptj_layer, net, path), x)
    return net.norm(x, "transformer.ln_f")


def _gptj_layer(net: Net, path: str, x: Tensor) -> Tensor:
    m, model = net.m, net.model
    residual = x
    x = net.norm(x, f"{path}.ln_1")
    attention = net.module(partial(_gptj_attention, net, path), x)
    forward = net.module(partial(_two_layers, net, f"{path}.mlp.fc_in", f"{path}.mlp.fc_out"), x)
    forward = net.dropout(forward, model.residual_dropout)
    return ops.add(m, ops.add(m, attention, forward), residual)


def _gptj_attention(net: Net, path: str, x: Tensor) -> Tensor:
    m, model = net.m, net.model
    q, k, v = (net.linear(x, f"{path}.attn.{name}_proj") for name in "qkv")
    share, length = model.rotary_dim, net.job.sequence_length
    places = m.tensor(model.max_positions * share, ops.FLOAT), m.tensor(length * share, INDEX_BYTES)
    turned_k, turned_q = net.rotary_parts((k, q), share / model.head_dim, partial(_gptj_tables, net))
    del q, k
    out, net.attention_weights = att.eager(
        m, turned_q[0], turned_k[0], v, _shape(net), score_item=ops.FLOAT, dropout=net.dropout
    )
    del places
    return net.dropout(net.linear(out, f"{path}.attn.out_proj"), model.residual_dropout)


def _gptj_tables(net: Net) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Sines and cosines are repeated for each half anew (``apply_rotary_pos_emb``)."""
    sines, cosines = (net.m.tensor(net.job.sequence_length * net.model.rotary_dim) for _ in range(2))
    return (cosines,), (sines,)


# -- GPT-NeoX and Pythia: models/gpt_neox --------------------------------------------------------------


def _neox(net: Net) -> Tensor:
    model = net.model
    x = net.dropout(net.words("gpt_neox.embed_in", net.tokens), model.embedding_dropout)
    for path in net.layers("gpt_neox.layers"):
        x = net.layer(partial(_neox_layer, net, path), x)
    return net.norm(x, "gpt_neox.final_layer_norm")


def _neox_layer(net: Net, path: str, x: Tensor) -> Tensor:
    m, model = net.m, net.model
    normed = net.norm(x, f"{path}.input_layernorm")
    attention = net.module(partial(_neox_attention, net, path), normed)
    del normed
    attention = net.dropout(attention, model.residual_dropout)
    if not model.parallel_residual:
        attention = ops.add(m, attention, x)
        x = attention
    forward = net.norm(x, f"{path}.post_attention_layernorm")
    forward = net.module(
        partial(_two_layers, net, f"{path}.mlp.dense_h_to_4h", f"{path}.mlp.dense_4h_to_h"), forward
    )
    forward = net.dropout(forward, model.residual_dropout)
    out = ops.add(m, forward, attention)
    return ops.add(m, out, x) if model.parallel_residual else out


def _neox_attention(net: Net, path: str, x: Tensor) -> Tensor:
    model = net.model
    packed = net.linear(x, f"{path}.attention.query_key_value")
    q, k, v = ops.split(net.m, ops.by_head(net.m, packed), *[packed.numel // 3] * 3)
    share = model.rotary_dim / model.head_dim
    q, k = net.rotary(q, k, share)
    out = net.attend(q, k, v, _shape(net))
    return net.linear(out, f"{path}.attention.dense")


# -- Phi and OPT: models/phi, models/opt ---------------------------------------------------------------


def _phi(net: Net) -> Tensor:
    model = net.model
    x = net.dropout(net.words("model.embed_tokens", net.tokens), model.embedding_dropout)
    for path in net.layers("model.layers"):
        x = net.layer(partial(_phi_layer, net, path), x)
    return net.norm(x, "model.final_layernorm")


def _phi_layer(net: Net, path: str, x: Tensor) -> Tensor:
    m, model = net.m, net.model
    residual = x
    x = net.norm(x, f"{path}.input_layernorm")
    attention = net.module(partial(_phi_attention, net, path), x)
    attention = net.dropout(attention, model.residual_dropout)
    forward = net.module(partial(_two_layers, net, f"{path}.mlp.fc1", f"{path}.mlp.fc2"), x)
    forward = net.dropout(forward, model.residual_dropout)
    return ops.add(m, ops.add(m, attention, forward), residual)


def _phi_attention(net: Net, path: str, x: Tensor) -> Tensor:
    model = net.model
    q, k, v = (_projected(net, f"{path}.self_attn", name, x) for name in "qkv")
    if model.hf["qk_layernorm"]:
        q, k = net.norm(q, f"{path}.self_attn.q_layernorm"), net.norm(k, f"{path}.self_attn.k_layernorm")
    share = model.rotary_dim / model.head_dim
    turned_q, turned_k = net.rotary_parts((q, k), share)
    return net.linear(net.attend(turned_q[0], turned_k[0], v, _shape(net)), f"{path}.self_attn.dense")


def _opt(net: Net) -> Tensor:
    m, model = net.m, net.model
    words = net.words("model.decoder.embed_tokens", net.tokens)
    if "model.decoder.project_in.weight" in net.weights:
        words = net.linear(words, "model.decoder.project_in")
    places = net.embedding("model.decoder.embed_positions", net.tokens)
    x = ops.add(m, words, places)
    for path in net.layers("model.decoder.layers"):
        x = net.layer(partial(_opt_layer, net, path), x)
    if model.hf["do_layer_norm_before"] and not model.hf["_remove_final_layer_norm"]:
        x = net.norm(x, "model.decoder.final_layer_norm")
    if "model.decoder.project_out.weight" in net.weights:
        x = net.linear(x, "model.decoder.project_out")
    return x


def _opt_layer(net: Net, path: str, x: Tensor) -> Tensor:
    m, model = net.m, net.model
    before = bool(model.hf.get("do_layer_norm_before", True))
    residual = x
    if before:
        x = net.norm(x, f"{path}.self_attn_layer_norm")
    out = net.module(partial(_opt_attention, net, path), x)
    x = ops.add(m, residual, ops.dropout(m, out, model.residual_dropout))
    del out
    if not before:
        x = net.norm(x, f"{path}.self_attn_layer_norm")
    residual = x
    if before:
        x = net.norm(x, f"{path}.final_layer_norm")
    x = _two_layers(net, f"{path}.fc1", f"{path}.fc2", x)
    x = ops.add(m, residual, ops.dropout(m, x, model.residual_dropout))
    return x if before else net.norm(x, f"{path}.final_layer_norm")


def _opt_attention(net: Net, path: str, x: Tensor) -> Tensor:
    q = ops.scale(net.m, net.linear(x, f"{path}.self_attn.q_proj"))
    k, v = (net.linear(x, f"{path}.self_attn.{name}_proj") for name in "kv")
    return net.linear(net.attend(q, k, v, _shape(net)), f"{path}.self_attn.out_proj")
