"""Recomputing some of a model's layers: which ones, and that nothing but memory and time changes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from trimtab.config import Config  # noqa: E402
from trimtab.errors import UsageError  # noqa: E402
from trimtab.model import Model  # noqa: E402
from trimtab.train.model import (  # noqa: E402
    Build,
    build_model,
    quiet_transformers,
    recompute,
    transformer_layers,
)

SIZES = {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
GPT = {"n_layer": 4, "n_embd": 32, "n_head": 2, "n_positions": 32, "bos_token_id": 1, "eos_token_id": 2}
MODELS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 8},
    "gpt_neox": SIZES,
    "bert": SIZES,
    "t5": {
        "d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2,
        "pad_token_id": 0, "decoder_start_token_id": 0,
    },
}  # fmt: skip
AUTO = {"bert": "AutoModelForMaskedLM", "t5": "AutoModelForSeq2SeqLM"}


def build(name: str) -> Any:
    quiet_transformers()
    torch.manual_seed(0)
    hf = transformers.AutoConfig.for_model(name, vocab_size=64, **MODELS[name])
    hf.use_cache = False
    auto = getattr(transformers, AUTO.get(name, "AutoModelForCausalLM"))
    return auto.from_config(hf, dtype=torch.float32).train()


def step(module: Any) -> tuple[Any, list[Any], list[int]]:
    """Loss, gradients, and which layers ran twice."""
    layers, runs = transformer_layers(module), Counter[int]()
    for place, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda *_, place=place: runs.update([place]))
    torch.manual_seed(1)
    tokens = torch.randint(3, 64, (2, 16))
    loss = module(input_ids=tokens, labels=tokens).loss
    loss.backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    assert set(runs) == set(range(len(layers)))
    return loss.detach(), gradients, [place for place in sorted(runs) if runs[place] == 2]


@pytest.mark.parametrize("name", MODELS)
def test_the_first_layers_run_twice_and_every_bit_of_loss_and_gradients_stays(name: str) -> None:
    """Dropout too: its masks are drawn again from the same state."""
    plain = build(name)
    count = len(transformer_layers(plain))
    assert count == Model.from_hf(plain.config.to_dict(), name).all_layers
    loss, gradients, twice = step(plain)
    assert twice == []
    for some in (1, count // 2, count, None):
        module = build(name)
        recompute(module, some, frozen=False)
        again, others, twice = step(module)
        assert twice == list(range(count if some is None else some))
        assert torch.equal(loss, again)
        assert all(torch.equal(one, other) for one, other in zip(gradients, others, strict=True))


def test_t5_recomputes_its_encoder_first_and_its_attentions_follow_their_layer() -> None:
    module = build("t5")
    recompute(module, 3, frozen=False)
    flags = [layer.gradient_checkpointing for layer in transformer_layers(module)]
    assert flags == [True, True, True, False, False]
    assert [block.gradient_checkpointing for block in module.encoder.block] == [True, True]
    attention = [block.layer[1].EncDecAttention.gradient_checkpointing for block in module.decoder.block]
    assert attention == [True, False, False]


def test_more_layers_than_the_model_has_are_refused() -> None:
    with pytest.raises(UsageError, match='"checkpoint_activations" is 5, but llama has 4 layers'):
        recompute(build("llama"), 5, frozen=False)


@pytest.mark.parametrize(("stated", "on"), [(False, 0), (0, 0), (1, 1), (3, 3), (True, 4)])
def test_a_file_says_how_many_layers(stated: bool | int, on: int) -> None:
    config = Config.from_mapping({"trimtab": {"sequence_length": 16, "checkpoint_activations": stated}})
    hf = transformers.AutoConfig.for_model("llama", vocab_size=64, **SIZES)
    module = build_model(config, hf, Build(), device="cpu").module
    assert sum(layer.gradient_checkpointing for layer in transformer_layers(module)) == on
