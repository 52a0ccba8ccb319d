"""What holds the code in shape: imports obey the layers, and files stay readable."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sources import MODULES, PACKAGE, ROOT, SRC, python

# A module imports only from its own layer and those above it.
LAYERS = (
    ("errors", "frozen", "units"),
    (
        "architecture",
        "auto",
        "cards",
        "catalogue",
        "cluster",
        "config",
        "folders",
        "hf_config",
        "job",
        "model",
        "parameters",
        "prices",
        "settings",
        "source",
    ),
    ("cost", "findings", "moves", "rules", "schema"),
    (
        "adapt",
        "check",
        "compare",
        "corrections",
        "diagnose",
        "estimate",
        "fit",
        "fixing",
        "judging",
        "ladder",
        "plan",
        "suppression",
    ),
    ("drawing", "launch", "probe", "rehearse", "report", "store", "train"),
    ("cli", "web"),
)
LAYER = {name: depth for depth, names in enumerate(LAYERS) for name in names}
DOORS = ("__init__", "__main__")
"""The package itself: it hands out names of every layer, lazily."""

# Where each third-party package may be imported; the rest of the code has the standard library.
ENGINE = ("train", "rehearse", "probe")
HOMES = {
    "typer": ("cli",),
    "rich": ("cli", "report", "train"),
    "yaml": ("source",),
    "tomli": ("settings",),
    "matplotlib": ("drawing",),
    "psutil": ("launch", "train", "rehearse", "probe"),
    **dict.fromkeys(
        (
            "accelerate",
            "datasets",
            "deepspeed",
            "numpy",
            "peft",
            "safetensors",
            "tokenizers",
            "torch",
            "transformers",
        ),
        ENGINE,
    ),
}
LONGEST = 500
VAGUE_NAMES = re.compile("util|helper|common|misc|manager|stuff", re.IGNORECASE)
HEAVY = ("torch", "deepspeed", "transformers", "numpy", "matplotlib")


def part(file: Path) -> str:
    """The top-level module or package of ours that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import in a file, also those inside functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute"
            module = node.module or ""
            yield node.lineno, module
            if module == "trimtab":
                yield from ((node.lineno, f"trimtab.{alias.name}") for alias in node.names)


def ours(dotted: str) -> str | None:
    """The part of ours that an import names, if any."""
    package, _, rest = dotted.partition(".")
    name = rest.partition(".")[0]
    is_module = (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()
    return name if package == "trimtab" and name and is_module else None


MODULE_IDS = [str(file.relative_to(SRC)) for file in MODULES]


def test_every_module_has_a_layer() -> None:
    assert {part(file) for file in MODULES} - set(LAYER) - set(DOORS) == set()


@pytest.mark.parametrize("file", MODULES, ids=MODULE_IDS)
def test_imports_obey_the_layers(file: Path) -> None:
    if part(file) in DOORS:
        return
    depth = LAYER[part(file)]
    wrong = [
        f"{file}:{line}: {part(file)} (layer {depth}) imports {name} (layer {LAYER[target]})"
        for line, name in imports(file)
        if (target := ours(name)) is not None and LAYER[target] > depth
    ]
    assert wrong == []


def test_no_packages_import_each_other() -> None:
    """Nor in a ring: packages that import no other are taken away again and again, and none is left."""
    left: dict[str, set[str]] = {}
    for file in MODULES:
        if (PACKAGE / part(file)).is_dir():
            found = {target for _, name in imports(file) if (target := ours(name)) is not None}
            left.setdefault(part(file), set()).update(found - {part(file)})
    while ends := {name for name, found in left.items() if not found & set(left)}:
        left = {name: found for name, found in left.items() if name not in ends}
    assert {name: found & set(left) for name, found in left.items()} == {}


@pytest.mark.parametrize("file", MODULES, ids=MODULE_IDS)
def test_other_peoples_packages_stay_in_their_homes(file: Path) -> None:
    wrong = [
        f"{file}:{line}: {part(file)} imports {name}"
        for line, name in imports(file)
        if part(file) not in HOMES.get(name.partition(".")[0], (part(file),))
    ]
    assert wrong == []


@pytest.mark.parametrize("file", MODULES, ids=MODULE_IDS)
def test_files_can_be_read_in_a_sitting(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST
    assert not VAGUE_NAMES.search(file.stem)


@pytest.mark.parametrize("file", MODULES, ids=MODULE_IDS)
def test_every_module_says_what_it_is(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "program",
    [
        "import trimtab; trimtab.load_config('gpt2_baseline'); trimtab.Config; trimtab.TrimtabError",
        "from trimtab.cli.main import main; main(['--help'])",
        "from trimtab.cli.main import main; main(['list', '--json'])",
        "from trimtab.cli.main import main; main(['show', 'gpt2_baseline'])",
        "from trimtab.cli.main import main; main(['version'])",
        "from trimtab.cli.main import main; main(['adapt', 'gpt2_baseline', '--gpu', 't4'])",
        "from trimtab.cli.main import main; main(['ladder', 'gpt2_baseline', '--gpu', 't4'])",
    ],
)
def test_nothing_heavy_is_imported(program: str) -> None:
    done = python("-c", f"{program}; import sys; sys.exit(str(sorted({set(HEAVY)!r} & set(sys.modules))))")
    assert done.stderr.strip() == "[]"


def test_help_starts_without_any_package_of_others() -> None:
    program = "from trimtab.cli.main import main; main(['--help']); import sys; "
    done = python("-c", program + "sys.exit(str(sorted({'typer', 'rich', 'yaml'} & set(sys.modules))))")
    assert done.stderr.strip() == "[]"


def test_tests_and_scripts_have_docstrings_too() -> None:
    files = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "scripts").glob("*.py"), ROOT / "start.py"]
    silent = [str(file) for file in files if not ast.get_docstring(ast.parse(file.read_text("utf-8")))]
    assert silent == []


def test_test_files_have_names_of_their_own() -> None:
    """pytest puts their folders side by side on the path, so that tests can import what lies beside them."""
    names = [file.name for file in (ROOT / "tests").rglob("*.py")]
    assert sorted(names) == sorted(set(names))
