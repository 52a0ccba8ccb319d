"""The CPU form of a configuration, and its batch on another world; the small copy of a model."""

from __future__ import annotations

import pytest

from trimtab import catalogue
from trimtab.config import Config, fit_world
from trimtab.errors import RefusedConfig, Unsupported, UsageError
from trimtab.train.forms import check_gpu, check_world, cpu_form
from trimtab.train.settings import Settings, effective_config

BASE = {"train_micro_batch_size_per_gpu": 2, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}


def form(raw: dict, *, compilers: bool = True) -> tuple[Config, tuple[str, ...]]:
    return cpu_form(Config.from_mapping(BASE | raw), compilers=compilers)


def test_the_fused_optimizer_becomes_torchs() -> None:
    config, notes = form({})
    assert config.get("optimizer.params.torch_adam") is True
    assert len(notes) == 1
    assert "AdamW" in notes[0]


def test_offload_keeps_its_own_adam_only_where_it_can_be_compiled() -> None:
    offload = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}}}
    assert form(offload)[0].get("optimizer.params.torch_adam") is None
    assert form(offload, compilers=False)[0].get("optimizer.params.torch_adam") is True
    assert form(offload)[0].get("zero_optimization.offload_optimizer.pin_memory") is False


def test_what_only_cuda_has_is_replaced_and_said() -> None:
    config, notes = form(
        {
            "optimizer": {"type": "Lamb", "params": {"lr": 1e-3, "max_coeff": 0.3}},
            "zero_optimization": {
                "stage": 3, "zero_quantized_weights": True, "zero_quantized_gradients": True,
                "offload_param": {"device": "nvme", "nvme_path": "/nvme"},
            },
            "trimtab": {"kernels": "fused", "attention": "flash"},
        }
    )  # fmt: skip
    assert config.optimizer_type == "adamw"
    assert "max_coeff" not in config.optimizer_params
    assert config.offload_param == "cpu"
    assert config.get("zero_optimization.offload_param.nvme_path") is None
    assert not config.zero("zero_quantized_weights")
    assert (config.job.kernels, config.job.attention) == ("plain", "sdpa")
    assert len(notes) == 7
    assert all(note.startswith("on the CPU: ") for note in notes)


@pytest.mark.parametrize("name", catalogue.names())
def test_a_cpu_form_keeps_the_stage_and_is_its_own_cpu_form(name: str) -> None:
    once, notes = cpu_form(catalogue.load_config(name), compilers=False)
    assert notes
    assert once.stage == catalogue.load_config(name).stage
    assert cpu_form(once, compilers=False) == (once, ())


def test_the_accumulation_follows_the_world_and_keeps_the_batch() -> None:
    config = catalogue.load_config("llama_7b_single_node")
    same, notes = fit_world(config, 8)
    assert (same, notes) == (config, ())
    smaller, notes = fit_world(config, 2)
    assert smaller.batch(2).train == 128
    assert smaller.batch(2).accumulation == 16
    assert "4 becomes 16" in notes[0]
    with pytest.raises(RefusedConfig, match="train_batch_size is 128"):
        fit_world(config, 3)


def test_a_gpu_without_bf16_is_refused_with_the_cure() -> None:
    config = catalogue.load_config("llama_7b_single_node")
    check_gpu(config, (8, 0), "A100")
    with pytest.raises(Unsupported, match=r"V100 .*--set bf16.enabled=false --set fp16.enabled=true"):
        check_gpu(config, (7, 0), "V100")
    with pytest.raises(RefusedConfig, match="8, but this machine has 2"):
        check_world(config, 8, 2)


def settings(**more: object) -> Settings:
    return Settings(config="gpt2_baseline", data=("x",), run="r", device="cuda", **more)  # type: ignore[arg-type]


def test_what_was_asked_for_goes_into_the_configuration() -> None:
    config, _ = effective_config(
        settings(
            learning_rate=1e-2,
            warmup_steps=0,
            changes=("zero_optimization.stage=2", "trimtab.attention=eager"),
        ),
        world=4,
    )
    assert config.stage == 2
    assert config.job.attention == "eager"
    assert config.get("optimizer.params.lr") == config.get("scheduler.params.warmup_max_lr") == 1e-2
    assert config.get("scheduler.params.warmup_num_steps") == 2


def test_shrink_leaves_a_length_that_was_asked_for() -> None:
    config, notes = effective_config(settings(shrink=True), world=4)
    assert config.job.sequence_length == 128
    assert any("sequence_length is 128" in note for note in notes)
    asked = settings(shrink=True, changes=("trimtab.sequence_length=512",))
    assert effective_config(asked, world=4)[0].job.sequence_length == 512


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 1, "epochs": 1.0}, "give one"),
        ({"steps": 0}, "above 0"),
        ({"validation": 0.9}, "between 0 and 0.5"),
        ({"keep": 0}, "at least 1"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings(**wrong)


def test_settings_come_back_from_their_file(tmp_path) -> None:
    first = settings(changes=("a=1",), freeze=("x.*",), epochs=2.0)
    first.save(tmp_path / "settings.json")
    assert Settings.load(tmp_path / "settings.json") == first


@pytest.mark.parametrize(
    "model", ["llama-70b", "gpt2", "gpt-j-6b", "gpt-neox-20b", "bert-large-uncased", "t5-3b"]
)
def test_a_shrunken_model_is_small_and_the_same_kind(model: str) -> None:
    pytest.importorskip("transformers")
    from trimtab.train.model import read_model_config
    from trimtab.train.shrink import shrink

    whole = read_model_config(model)
    small = shrink(whole)
    assert small.model_type == whole.model_type
    assert (small.num_hidden_layers, small.hidden_size, small.vocab_size) == (2, 128, 2048)
    assert small.hidden_size % small.num_attention_heads == 0
    groups = getattr(whole, "num_key_value_heads", None)
    if groups is not None and groups < whole.num_attention_heads:
        assert small.num_key_value_heads < small.num_attention_heads
    assert whole.hidden_size > 128


def test_a_shrunken_falcon_keeps_what_its_class_derives() -> None:
    """The width of its heads is a property of the class, the number of key heads has its own name."""
    pytest.importorskip("transformers")
    from transformers import FalconConfig

    from trimtab.train.shrink import shrink

    whole = FalconConfig(hidden_size=2048, num_attention_heads=32, num_kv_heads=8)
    small = shrink(whole)
    assert (small.head_dim, small.num_attention_heads) == (32, 4)
    assert small.num_kv_heads < small.num_attention_heads


@pytest.mark.parametrize(
    ("change", "near"),
    [
        ("train_batch_sze=64", "train_batch_size"),
        ("zero_optimization.stge=1", "stage"),
        ("optimizer.params.lrr=1", "lr"),
    ],
)
def test_a_key_that_nothing_reads_cannot_be_set(change: str, near: str) -> None:
    with pytest.raises(UsageError, match=rf"^--set {change.partition('=')[0]}: .*Did you mean {near}\?"):
        effective_config(settings(changes=(change,)), world=4)
