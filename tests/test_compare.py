"""Configurations compared by what they do."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.compare import compare
from trimtab.errors import UnreadableFile
from trimtab.source import read_dict, read_text

SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"gradient_clipping": 1.0}),
    ({"zero_optimization": True}, {"zero_optimization": {"stage": 1}}),
    ({"zero_optimization": {"stage": 3}}, {"zero_optimization": {"stage": 3, "overlap_comm": True}}),
    ({"zero_optimization": {"stage": "2"}}, {"zero_optimization": {"stage": 2.0}}),
    (
        {"zero_optimization": {"stage": 2, "cpu_offload": True}},
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
    ),
    (
        {"zero_optimization": {"stage3_prefetch_bucket_size": 7}},
        {"zero_optimization": {"prefetch_bucket_size": 7}},
    ),
    ({"bfloat16": {"enabled": True}}, {"bf16": {"enabled": 1}}),
    ({"optimizer": {"type": "Adam"}}, {"optimizer": {"type": "AdamW", "params": {"lr": 0.001}}}),
]


@pytest.mark.parametrize(("before", "after"), SAME)
def test_the_same_in_effect(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert compare(read_dict(before), read_dict(after), deepspeed="0.19.8").equal
    assert compare(read_dict(after), read_dict(before), deepspeed="0.19.8").equal


def test_what_differs() -> None:
    before = {"zero_optimization": {"stage": 2}, "gradient_clipping": 0.5, "no_such_key": 1}
    after = {
        "zero_optimization": {"stage": 3},
        "optimizer": {"type": "Adam", "params": {"adam_w_mode": False}},
    }
    found = compare(read_dict(before), read_dict(after), deepspeed="0.19.8")
    changes = {change.path: (change.before, change.after) for change in found.changes}
    assert changes["zero_optimization.stage"] == (2, 3)
    assert changes["gradient_clipping"] == (0.5, 1.0)
    assert changes["optimizer.type"] == ("(absent)", "Adam")
    assert [change.path for change in found.changes if change.ignored] == ["no_such_key"]
    assert not found.equal


def test_defaults_are_those_of_the_release() -> None:
    empty, clipped = read_dict({}), read_dict({"gradient_clipping": 1.0})
    assert compare(empty, clipped, deepspeed="0.19.8").equal
    assert not compare(empty, clipped, deepspeed="0.18.9").equal


@pytest.mark.parametrize(
    ("text", "said"), [('{"a":', "end of the text"), ("[1]", "the top is a list"), ("3", "a single")]
)
def test_what_is_no_configuration_is_not_compared(text: str, said: str) -> None:
    with pytest.raises(UnreadableFile, match=said):
        compare(read_text("{}"), read_text(text, written="json"))
