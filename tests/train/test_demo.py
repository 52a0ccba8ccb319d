"""The demonstration's settings: what they replace and what they leave alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.errors import UsageError
from trimtab.train.demo import demo_settings
from trimtab.train.folder import RunFolder


def test_a_demo_replaces_a_demo_and_no_other_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    asked = demo_settings(folder.path, device="cpu")
    asked.save(folder.settings)
    assert demo_settings(folder.path, device="cpu").overwrite
    replace(asked, config="mine.json").save(folder.settings)
    with pytest.raises(UsageError, match="holds another run, which a demo does not replace: give --run DIR"):
        demo_settings(folder.path, device="cpu")
