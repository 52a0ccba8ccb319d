"""The check against DeepSpeed's own configuration class, over configurations made by mutation.

No configuration that the class refuses may pass without an error that says so; of those it takes, fewer than
one in a hundred may get such an error, each kind with its reason in ``tests/data/engine_exceptions.json``.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
from judge import Engine, refusing
from mutations import mutants

from trimtab import schema
from trimtab.judging import make_options
from trimtab.settings import Settings

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]
EXCEPTIONS = json.loads((Path(__file__).parent.parent / "data" / "engine_exceptions.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def version() -> str:
    try:
        installed = importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("DeepSpeed is not installed")
    if installed not in schema.known_versions():
        pytest.skip(f"DeepSpeed {installed} is installed; the rules know releases up to "
                    f"{schema.known_versions()[-1]}")  # fmt: skip
    return installed


@pytest.fixture(scope="module")
def engine(version: str) -> Any:
    made = Engine()
    yield made
    made.close()


def compare(engine: Engine, version: str, count: int, seed: int) -> None:
    options = make_options(settings=Settings(), deepspeed=version, ignore=["AD"])
    missed, false_errors, refused = [], [], 0
    for world, config in mutants(count, seed=seed, version=version):
        refusal = engine.refusal(config, world)
        errors = refusing(config, world, options)
        refused += refusal is not None
        if refusal and not errors:
            missed.append((refusal, world, config))
        if errors and not refusal:
            false_errors.append(([finding.code for finding in errors], world, config))
    print(
        f"{count} configurations, {refused} refused, {len(missed)} missed, {len(false_errors)} false errors"
    )
    assert 0.2 * count < refused < 0.8 * count  # both verdicts are well represented
    assert missed == []
    newest = version == schema.known_versions()[-1]
    known = EXCEPTIONS["reading" if newest else "reading an older release"]["false_errors"]
    assert [case for case in false_errors if not set(case[0]) <= set(known)] == []
    assert len(false_errors) < 0.01 * count


def test_the_engine_and_the_check_agree(engine: Engine, version: str) -> None:
    compare(engine, version, 1_500, seed=7)


@pytest.mark.nightly
def test_the_engine_and_the_check_agree_at_length(engine: Engine, version: str) -> None:
    compare(engine, version, 10_000, seed=2026)
