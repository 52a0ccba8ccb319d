"""Parameter lists by themselves: published totals, ties, LoRA, refusals and speed of thought."""

from __future__ import annotations

import pytest

from trimtab.errors import UnknownArchitecture, UsageError
from trimtab.job import Lora
from trimtab.model import Model, catalogue, find_model
from trimtab.parameters import buffers, parameters, skeleton, tasks_of

# As published with the weights (model cards; safetensors headers on the Hugging Face Hub).  T5 v1.1 and
# mT5 ship an untied output matrix, which transformers 5.17 ties: those totals are less one embedding.
PUBLISHED = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt-j-6b": 6_050_882_784,
    "gpt-neox-20b": 20_554_567_680,
    "gpt-neo-125m": 125_198_592,
    "gpt-neo-2.7b": 2_651_307_520,
    "pythia-70m": 70_426_624,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "opt-125m": 125_239_296,
    "opt-6.7b": 6_658_473_984,
    "opt-30b": 29_974_540_288,
    "qwen2-0.5b": 494_032_768,
    "qwen2-7b": 7_615_616_512,
    "qwen2-72b": 72_706_203_648,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952,
    "phi-2": 2_779_683_840,
    "phi-3-mini": 3_821_079_552,
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5-v1.1-base": 247_577_856 - 32128 * 768,
    "t5-v1.1-xxl": 11_135_332_352 - 32128 * 4096,
    "mt5-base": 582_401_280 - 250112 * 768,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_totals_are_those_published_with_the_weights(name: str) -> None:
    model = find_model(name)
    assert sum(p.numel for p in parameters(model, tasks_of(model)[0])) == PUBLISHED[name]


def test_bert_heads_cost_what_the_measured_case_counted() -> None:
    assert sum(p.numel for p in parameters(find_model("bert-base"), "sequence-classification")) == 109_483_778


def test_names_are_distinct_for_every_model_and_task() -> None:
    for name in catalogue():
        model = find_model(name)
        for task in tasks_of(model):
            names = [p.name for p in parameters(model, task)]
            assert len(names) == len(set(names))


def test_a_tied_tensor_stands_once_at_its_first_place() -> None:
    assert not [p for p in parameters(find_model("gpt2")) if p.name.startswith("lm_head")]
    assert parameters(find_model("llama-7b"))[-1].name == "lm_head.weight"
    xlm = parameters(find_model("xlm-roberta-base"), "masked-lm")
    assert [p.name for p in xlm if p.shape == (250002, 768)] == ["lm_head.decoder.weight"]


def test_a_task_without_a_class_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="cannot be built for masked-lm; it can for causal-lm"):
        parameters(find_model("llama-7b"), "masked-lm")
    with pytest.raises(UsageError, match="seq2seq-lm"):
        skeleton(find_model("t5-base"), "causal-lm")


def test_cross_attention_bolted_on_is_not_guessed() -> None:
    with pytest.raises(UnknownArchitecture, match="add_cross_attention"):
        parameters(Model.from_hf({"model_type": "gpt2", "add_cross_attention": True}))


def test_lora_freezes_the_base_and_trains_the_adapters() -> None:
    model = find_model("llama-7b")
    adapted = parameters(model, "causal-lm", Lora(r=8, target_modules=("q_proj", "v_proj")))
    assert sum(p.numel for p in adapted if p.trainable) == 4_194_304  # as the measured case counted
    assert sum(p.numel for p in adapted if not p.trainable) == 6_738_415_616
    assert adapted == parameters(model, "causal-lm", Lora(r=8))


def test_lora_that_matches_nothing_names_what_it_could_adapt() -> None:
    with pytest.raises(UsageError, match=r"no module is called c_attn; LoRA can adapt .*q_proj"):
        parameters(find_model("llama-7b"), "causal-lm", Lora(target_modules=("c_attn",)))
    with pytest.raises(UsageError, match="peft has no default LoRA targets for phi3"):
        parameters(find_model("phi-3-mini"), "causal-lm", Lora())


def test_buffers_that_weigh_something_are_counted() -> None:
    assert sum(b.bytes for b in buffers(find_model("gpt-neo-2.7b"))) == 32 * 2048 * 2048
    assert sum(b.bytes for b in buffers(find_model("gpt2"))) == 0
    assert sum(b.bytes for b in buffers(find_model("llama-7b"))) == 2 * 64 * 4
