"""The package as users get it: its public names, and what a wheel holds."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import trimtab
from sources import PACKAGE, ROOT, python


def test_public_names_are_sorted_and_exist() -> None:
    assert list(trimtab.__all__) == sorted(trimtab.__all__)
    for name in trimtab.__all__:
        assert getattr(trimtab, name) is not None
    assert set(trimtab.__all__) <= set(dir(trimtab))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'lode_config'"):
        _ = trimtab.lode_config


def test_a_function_keeps_its_name_when_the_module_of_that_name_is_imported() -> None:
    program = """
import sys, types, trimtab
trimtab._HOMES["answer"] = "trimtab.answer"
module = types.ModuleType("trimtab.answer")
module.answer = lambda: 42
sys.modules["trimtab.answer"] = module
trimtab.answer = module
assert trimtab.answer() == 42
"""
    done = python("-c", program)
    assert done.returncode == 0, done.stderr


def test_every_module_can_be_imported_by_its_name() -> None:
    for name in trimtab._MODULES:
        assert importlib.import_module(f"trimtab.{name}") is getattr(trimtab, name)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel of this tree, built beside it and without a network."""
    copy = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    out = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(out)]
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(copy)],
        capture_output=True, text=True, check=False, cwd=out,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = out.glob("trimtab-*.whl")
    return zipfile.ZipFile(file)


def test_a_wheel_holds_every_module_and_every_data_file(wheel: zipfile.ZipFile) -> None:
    tree = {
        file.relative_to(PACKAGE.parent).as_posix()
        for file in PACKAGE.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert tree - set(wheel.namelist()) == set()


def test_a_wheel_states_its_version_licence_and_command(wheel: zipfile.ZipFile) -> None:
    info = f"trimtab-{trimtab.__version__}.dist-info"
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert f"Version: {trimtab.__version__}" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert "trimtab = trimtab.cli.main:run" in wheel.read(f"{info}/entry_points.txt").decode()


def test_an_unpacked_wheel_lists_its_configurations(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    done = python("-m", "trimtab", "path", "gpt2_baseline", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
    assert Path(done.stdout.strip()).exists()
