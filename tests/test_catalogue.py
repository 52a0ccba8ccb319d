"""The thirteen configurations and their cards."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from trimtab import catalogue
from trimtab.cards import Alternative, Card
from trimtab.catalogue import card, load_config, names, path
from trimtab.cluster import find_gpu, find_link
from trimtab.compare import compare
from trimtab.errors import NotFound, UnreadableFile, UsageError
from trimtab.job import Job
from trimtab.model import find_model
from trimtab.parameters import tasks_of
from trimtab.source import read_source

THIRTEEN = (
    "bert_base_finetuning",
    "bert_large_pretraining",
    "gpt2_baseline",
    "gpt_neox_20b_zero3",
    "gptj_6b_zero2",
    "llama_13b_zero3_offload",
    "llama_70b_multi_node",
    "llama_7b_single_node",
    "llama_lora_finetune",
    "t5_base_pretraining",
    "t5_large_zero3",
    "t5_small_finetuning",
    "t5_xl_multi_node",
)
QUANTITIES = {
    "gpu_memory_bytes",
    "host_memory_bytes_per_node",
    "samples_per_second_per_gpu",
    "tokens_per_second_per_gpu",
}


def promised_worlds(facts: Card) -> set[int]:
    """The GPU counts of a card: its hardware's, and by doublings those of a purpose such as "4 to 8 GPUs"."""
    worlds = {facts.hardware.world_size}
    for purpose in facts.purpose:
        if "a single GPU" in purpose:
            worlds.add(1)
        for low, high in re.findall(r"(\d+) (?:to|or) (\d+) GPUs", purpose):
            worlds |= {int(high), *(int(low) * 2**step for step in range(12))}
            worlds = {world for world in worlds if world <= int(high)}
    return worlds


def world_of(facts: Card, alternative: Alternative) -> int:
    """The GPUs that an alternative such as "4x A100 80GB" or "8 nodes" is for; else the card's own."""
    when = alternative.when
    if found := re.match(r"(\d+)x |(\d+) GPUs", when):
        return int(found[1] or found[2])
    if found := re.match(r"(\d+) nodes", when):
        return int(found[1]) * facts.hardware.gpus_per_node
    return facts.hardware.world_size


def test_the_names_are_the_thirteen() -> None:
    assert sorted(names()) == list(THIRTEEN)
    assert [card(name).family for name in names()] == sorted(
        (card(name).family for name in names()), key=catalogue.FAMILIES.index
    )


def test_cards_and_configurations_pair_up() -> None:
    cards = {file.stem for file in (Path(catalogue.__file__).parent / "data" / "cards").glob("*.json")}
    assert cards == set(THIRTEEN)


def test_promises_are_read_from_the_cards() -> None:
    assert promised_worlds(card("llama_70b_multi_node")) == {32, 64}
    assert promised_worlds(card("gpt2_baseline")) == {1, 2, 4}
    assert promised_worlds(card("t5_small_finetuning")) == {2, 4}
    assert promised_worlds(card("llama_lora_finetune")) == {4, 8}


@pytest.mark.parametrize("name", THIRTEEN)
def test_the_batch_solves_for_every_promised_world(name: str) -> None:
    """As it stands, or by the alternative that the card has for that many GPUs."""
    facts, config = card(name), load_config(name)
    for world in promised_worlds(facts):
        others = [other for other in facts.alternatives if world_of(facts, other) == world]
        if world == facts.hardware.world_size or not others:
            assert config.batch(world).data_parallel == world
        else:
            assert [config.with_values(other.changes).batch(world).data_parallel for other in others] == [
                world
            ]


@pytest.mark.parametrize("name", THIRTEEN)
def test_alternatives_apply_and_still_solve(name: str) -> None:
    facts = card(name)
    assert facts.alternatives
    for alternative in facts.alternatives:
        changed = load_config(name).with_values(alternative.changes)
        batch = changed.batch(world_of(facts, alternative))
        assert batch.train == batch.micro * batch.accumulation * batch.data_parallel
        if alternative.changes:
            assert changed.raw != load_config(name).raw
        assert changed.stage in range(4)


@pytest.mark.parametrize("name", THIRTEEN)
def test_the_schedule_of_an_alternative_reaches_its_learning_rate(name: str) -> None:
    for alternative in card(name).alternatives:
        changed = load_config(name).with_values(alternative.changes)
        schedule = changed.get("scheduler.params.warmup_max_lr")
        if schedule is not None:
            assert schedule == changed.optimizer_params["lr"], alternative.when


@pytest.mark.parametrize("name", THIRTEEN)
def test_a_configuration_is_a_plain_file_that_names_its_job(name: str) -> None:
    text = path(name).read_text(encoding="utf-8")
    config = load_config(name)
    assert json.loads(text) == config.raw
    assert text.endswith("}\n")
    assert '"auto"' not in text
    assert config.job.model is not None
    model = find_model(config.job.model)
    assert config.job.task in tasks_of(model)
    assert "trimtab" not in config.deepspeed()
    assert Job.from_block(config.job.to_block()) == config.job
    assert config.precision != "fp32"
    assert not (config.get("bf16.enabled") and config.get("fp16.enabled"))


@pytest.mark.parametrize("name", THIRTEEN)
def test_a_card_is_complete(name: str) -> None:
    facts = card(name)
    assert facts.name == name
    assert facts.family == path(name).parent.name
    assert facts.title
    assert facts.purpose
    machines = facts.hardware
    assert machines.world_size == machines.gpus_per_node * machines.nodes
    assert machines.host_memory_bytes >= 16e9
    assert find_gpu(machines.gpu).name == machines.gpu
    assert (machines.inter_node_link is not None) == (machines.nodes > 1)
    if machines.inter_node_link is not None:
        assert find_link(machines.inter_node_link)
    assert {"gpu_memory_bytes"} <= {claim.quantity for claim in facts.claims} <= QUANTITIES | {"statement"}
    for claim in facts.claims:
        if claim.quantity == "statement":
            assert claim.truth, claim
            assert claim.source or claim.holds is None, claim
        else:
            bounds = [bound for bound in (claim.low, claim.high) if bound is not None]
            assert bounds, claim
            assert all(bound > 0 for bound in bounds), claim
            assert bounds == sorted(bounds), claim
    assert facts.changes
    for change in facts.changes:
        assert change.before != change.after
        assert change.why
        assert change.source


@pytest.mark.parametrize("name", THIRTEEN)
def test_figures_say_how_and_where_they_were_got(name: str) -> None:
    for figure in card(name).figures:
        assert figure.how in {"measured", "rehearsed", "phantom", "predicted"}
        assert figure.value > 0
        assert figure.where


def test_a_typo_gives_the_nearest_name() -> None:
    with pytest.raises(NotFound) as caught:
        path("llama_7b_singel_node")
    assert caught.value.nearest[0] == "llama_7b_single_node"
    with pytest.raises(NotFound):
        load_config("lama7b")
    with pytest.raises(NotFound):
        card("nothing of the kind")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[1]", "the top is a list: a configuration is an object"),
        (b"{", "not readable"),
        (b"\xff\xfe", "not readable"),
        (b"[" * 100_000, "not readable"),
    ],
)
def test_a_broken_file_says_what_is_wrong(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "broken.json"
    file.write_bytes(content)
    with pytest.raises(UnreadableFile, match=said):
        load_config(str(file))


def test_a_missing_file_and_a_folder_are_told_apart_from_names(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="no such file"):
        load_config(str(tmp_path / "none.json"))
    with pytest.raises(UnreadableFile, match="is a folder: name a configuration file in it"):
        load_config(str(tmp_path))


def test_a_file_is_read_like_a_ready_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(path("gpt2_baseline").read_text(encoding="utf-8"), encoding="utf-8")
    assert load_config(str(file)).raw == load_config("gpt2_baseline").raw


def test_a_block_that_holds_nonsense_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"trimtab": {"modle": "gpt2"}}', encoding="utf-8")
    with pytest.raises(UsageError, match=r'mine\.json: "trimtab" has no key "modle"\. Did you mean "model"'):
        load_config(str(file))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config:\n  deepspeed_config_file: ds.json\n",
            r"of Accelerate; .* is .*ds.json: give",
        ),
        ("deepspeed_config:\n  zero_stage: 2\n", r"of Accelerate; .* stands inside it"),
        ("output_dir: x\ndeepspeed: ds.json\n", r"of training arguments; .* is .*ds.json: give that one"),
    ],
)
def test_a_file_that_only_points_at_a_configuration_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UnreadableFile, match=said):
        load_config(str(file))
    with pytest.raises(UnreadableFile, match=said):
        compare(read_source(file), read_source(file))
