"""The class of transformers that builds a model for a task, or why there is none."""

from __future__ import annotations

import pytest

from trimtab.errors import UsageError
from trimtab.train.model import auto_class

transformers = pytest.importorskip("transformers")


def test_a_task_gets_its_class() -> None:
    assert auto_class("masked-lm", transformers.ModernBertConfig()) is transformers.AutoModelForMaskedLM
    assert auto_class("causal-lm", transformers.MixtralConfig()) is transformers.AutoModelForCausalLM


def test_a_task_without_a_head_is_answered_with_those_that_have_one() -> None:
    with pytest.raises(
        UsageError, match=r"^modernbert has no head for causal-lm; it has masked-lm, .* Give --task"
    ):
        auto_class("causal-lm", transformers.ModernBertConfig())
    with pytest.raises(UsageError, match=r"^vit has no head for any task that can be trained here"):
        auto_class("causal-lm", transformers.ViTConfig())
