"""Models: the catalogue, Hugging Face configs of every form, and what a broken one is answered with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import NotFound, UnknownArchitecture, UnreadableFile
from trimtab.hf_config import known_model_types
from trimtab.model import Model, catalogue, find_model


def test_every_catalogue_model_reads_and_states_its_source() -> None:
    for name, row in catalogue().items():
        model = find_model(name)
        assert (model.name, model.family) == (name, row["family"])
        assert (
            "arXiv" in row["source"] or "published config.json" in row["source"] or "paper" in row["source"]
        )


def test_names_and_aliases_are_distinct() -> None:
    spellings = [name.lower() for name in catalogue()]
    spellings += [alias.lower() for row in catalogue().values() for alias in row["aliases"]]
    assert len(spellings) == len(set(spellings))


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("llama-7b", "llama-7b"),
        ("LLaMA-7B", "llama-7b"),
        ("llama_7b", "llama-7b"),
        ("llama-70b", "llama-70b"),
        ("meta-llama/Llama-2-70b-hf", "llama-70b"),
        ("meta-llama/llama-2-7b-hf", "llama-2-7b"),
        ("bert-base-uncased", "bert-base"),
        ("google/t5-v1_1-xl", "t5-v1.1-xl"),
        ("EleutherAI/gpt-neox-20b", "gpt-neox-20b"),
    ],
)
def test_any_usual_spelling_finds_the_model(name: str, canonical: str) -> None:
    assert find_model(name).name == canonical


def test_the_plain_llama_names_mean_what_the_guide_means() -> None:
    seven, seventy = find_model("llama-7b"), find_model("llama-70b")
    assert (seven.intermediate_size, seven.layers, seven.vocab_size, seven.kv_heads) == (11008, 32, 32000, 32)
    assert (seventy.intermediate_size, seventy.layers, seventy.kv_heads) == (28672, 80, 8)


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(NotFound, match="Did you mean llama-13b"):
        find_model("lama-13b")


def test_class_defaults_complete_a_config_that_states_little() -> None:
    model = Model.from_hf({"model_type": "mistral", "num_hidden_layers": 2})
    assert (model.layers, model.kv_heads, model.intermediate_size, model.head_dim) == (2, 8, 14336, 128)


def test_aliases_and_own_names_of_a_field_are_the_same_field() -> None:
    own = Model.from_hf({"model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16})
    common = Model.from_hf(
        {"model_type": "gpt2", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    )
    assert own == common
    assert own.hf["n_embd"] == 1024


def test_models_of_equal_figures_and_other_configs_differ() -> None:
    plain = Model.from_hf({"model_type": "llama"}, "m")
    biased = Model.from_hf({"model_type": "llama", "attention_bias": True}, "m")
    assert plain != biased


def test_t5_is_always_tied_as_in_transformers() -> None:
    assert find_model("t5-v1.1-base").hf["tie_word_embeddings"] is False
    assert find_model("t5-v1.1-base").tied_embeddings


def test_sliding_layers_follow_each_class() -> None:
    gemma = find_model("gemma-2-9b")
    assert (gemma.sliding_window, gemma.sliding_layers) == (4096, tuple(range(0, 42, 2)))
    assert find_model("gemma-3-1b").sliding_layers[4:7] == (4, 6, 7)
    assert len(find_model("mistral-7b").sliding_layers) == 32
    assert find_model("qwen2-7b").sliding_window is None
    assert find_model("gpt-neo-2.7b").sliding_layers == tuple(range(1, 32, 2))


def test_dropouts_are_read_from_each_class_own_fields() -> None:
    gpt2, bert, llama = find_model("gpt2"), find_model("bert-base"), find_model("llama-7b")
    assert (gpt2.embedding_dropout, gpt2.residual_dropout, gpt2.attention_dropout) == (0.1, 0.1, 0.1)
    assert (bert.embedding_dropout, bert.attention_dropout) == (0.1, 0.1)
    assert (llama.embedding_dropout, llama.residual_dropout, llama.attention_dropout) == (0, 0, 0)
    assert find_model("t5-base").mlp_dropout == 0.1


def test_a_path_to_a_config_or_its_folder_works_without_a_network(tmp_path: Path) -> None:
    folder = tmp_path / "my-llama"
    folder.mkdir()
    config = folder / "config.json"
    config.write_text(json.dumps({"model_type": "llama", "hidden_size": 512, "num_attention_heads": 8}))
    assert find_model(config) == find_model(folder)
    assert find_model(str(folder)).name == "my-llama"
    assert find_model(config).head_dim == 64


def test_the_local_hub_cache_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "hub" / "models--acme--tiny" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(
        json.dumps({"model_type": "opt", "hidden_size": 96, "ffn_dim": 384})
    )
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert find_model("acme/tiny").hidden_size == 96
    with pytest.raises(NotFound):
        find_model("acme/other")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "line 1, column 2"),
        ("[1]", "an object"),
        ("{}", "model_type"),
        ('{"model_type": "llama", "hidden_size": "x"}', "\"hidden_size\" is 'x'"),
        ('{"model_type": "llama", "num_hidden_layers": 0}', '"num_hidden_layers" is 0'),
        ('{"model_type": "llama", "num_hidden_layers": true}', "positive whole number"),
        ('{"model_type": "llama", "vocab_size": null}', '"vocab_size" is None'),
        ('{"model_type": "llama", "num_key_value_heads": 5}', "cannot share 5"),
        ('{"model_type": "gpt2", "n_embd": 100, "n_head": 12}', "is not 12 heads of 8"),
        (
            '{"model_type": "mistral", "num_attention_heads": 5000}',
            "5000 attention heads are more than the hidden",
        ),
        ('{"model_type": "gptj", "rotary_dim": 300}', "no more than the width of a head, 256"),
        ('{"model_type": "t5", "num_decoder_layers": 1000000}', "1000000 layers are more than the 10000"),
        ('{"model_type": "llama", "hidden_size": 100, "head_dim": 8}', "no multiple of 32 attention heads"),
        ('{"model_type": "gpt2", "resid_pdrop": 2}', "from 0 to 1"),
        ('{"model_type": "t5", "feed_forward_proj": "wide-gelu"}', "feed_forward_proj"),
        ('{"model_type": "gpt_neo", "num_layers": 3}', '"attention_types" names 24 layers'),
    ],
)
def test_a_broken_config_is_named_with_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UnreadableFile) as caught:
        find_model(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_an_empty_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="no such file"):
        find_model(tmp_path / "config.json")
    with pytest.raises(UnreadableFile, match=r"holds no config\.json"):
        find_model(tmp_path)


def test_an_unknown_architecture_points_to_the_rehearsal(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "mamba"}')
    with pytest.raises(UnknownArchitecture) as caught:
        find_model(path)
    message = str(caught.value)
    assert "'mamba'" in message
    assert "llama" in message
    assert "trimtab rehearse --phantom" in message


@pytest.mark.parametrize(
    ("config", "cure"),
    [
        (
            {"model_type": "llava", "text_config": {"model_type": "llama"}},
            'Its language model is llama, which it knows: save "text_config"',
        ),
        (
            {"model_type": "internlm2", "auto_map": {"AutoConfig": "configuration_internlm2.Config"}},
            "which a rehearsal does not run either",
        ),
    ],
)
def test_no_rehearsal_is_offered_where_another_way_leads_on(config: dict[str, Any], cure: str) -> None:
    with pytest.raises(UnknownArchitecture) as caught:
        Model.from_hf(config)
    assert cure in str(caught.value)
    assert "--phantom" not in str(caught.value)


def test_every_known_model_type_reads_with_nothing_stated() -> None:
    for model_type in known_model_types():
        if model_type == "gpt_neo":
            continue
        model = Model.from_hf({"model_type": model_type})
        assert model.heads * model.head_dim > 0
        assert model.heads % model.kv_heads == 0


@pytest.mark.parametrize("gated", [True, False])
def test_a_gate_that_a_t5_config_states_comes_after_what_its_class_derives(gated: bool) -> None:
    hf = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "is_gated_act": gated}
    assert Model.from_hf(hf, "t5").gated_mlp is gated
