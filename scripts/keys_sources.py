"""Published DeepSpeed releases as parsed Python: fetched with pip, read from the archive, never imported."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "deepspeed"


def published_versions() -> list[str]:
    """Every release that pip can see, oldest first."""
    answer = _pip("index", "versions", PACKAGE)
    line = next(line for line in answer.splitlines() if line.startswith("Available versions:"))
    versions = [text.strip() for text in line.split(":", 1)[1].split(",")]
    return sorted(versions, key=version_order)


def version_order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def fetch(version: str, cache: Path) -> Path:
    """The path of the release's source archive, downloaded on first use."""
    archive = cache / f"{PACKAGE}-{version}.tar.gz"
    if not archive.exists():
        print(f"fetching {PACKAGE} {version}", file=sys.stderr)
        wanted = f"{PACKAGE}=={version}"
        # pip asks the archive's own setup.py for metadata, and some releases import torch there.
        _pip(
            "download",
            "--no-deps",
            "--no-build-isolation",
            "--no-binary",
            PACKAGE,
            wanted,
            "--dest",
            str(cache),
        )
    return archive


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    plain = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=plain)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


@dataclass
class Module:
    """One source file: its top-level names, and where its imports point."""

    name: str
    path: str
    tree: ast.Module
    defined: dict[str, ast.AST] = field(default_factory=dict)
    imported: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    starred: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for statement in self.tree.body:
            self.take(statement)

    def take(self, statement: ast.stmt) -> None:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            self.defined[statement.name] = statement
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    self.defined[target.id] = statement.value
        elif (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.value
        ):
            self.defined[statement.target.id] = statement.value
        elif isinstance(statement, ast.ImportFrom):
            self.imported.update(self.import_targets(statement))
            if any(alias.name == "*" for alias in statement.names):
                self.starred.append(self.absolute(statement))
        elif isinstance(statement, ast.Try):
            for inner in statement.body:
                self.take(inner)

    def import_targets(self, statement: ast.ImportFrom) -> dict[str, tuple[str, str | None]]:
        source = self.absolute(statement)
        return {
            alias.asname or alias.name: (source, alias.name) for alias in statement.names if alias.name != "*"
        }

    def absolute(self, statement: ast.ImportFrom) -> str:
        if not statement.level:
            return statement.module or ""
        package = self.name if self.path.endswith("__init__.py") else self.name.rpartition(".")[0]
        for _ in range(statement.level - 1):
            package = package.rpartition(".")[0]
        return f"{package}.{statement.module}" if statement.module else package


class Release:
    """The Python files of one release, parsed when first asked for."""

    def __init__(self, version: str, archive: Path) -> None:
        self.version = version
        prefix = f"{PACKAGE}-{version}/{PACKAGE}/"
        self.texts: dict[str, str] = {}
        with tarfile.open(archive) as files:
            for member in files:
                if member.name.startswith(prefix) and member.name.endswith(".py"):
                    opened = files.extractfile(member)
                    assert opened is not None
                    self.texts[member.name.removeprefix(prefix)] = opened.read().decode("utf-8")
        if "runtime/config.py" not in self.texts:
            raise SystemExit(f"{archive} does not hold {prefix}runtime/config.py")
        self._modules: dict[str, Module | None] = {}

    def module(self, name: str) -> Module | None:
        """The module called ``name`` (``deepspeed.runtime.config``), or None when the release has none."""
        if name not in self._modules:
            self._modules[name] = self._parse(name)
        return self._modules[name]

    def _parse(self, name: str) -> Module | None:
        if name.split(".")[0] != PACKAGE:
            return None
        stem = "/".join(name.split(".")[1:])
        for path in (f"{stem}.py", f"{stem}/__init__.py".lstrip("/")):
            if path in self.texts:
                return Module(name=name, path=path, tree=ast.parse(self.texts[path]))
        return None

    def find(
        self, module: Module, name: str, _seen: frozenset[str] = frozenset()
    ) -> tuple[Module, ast.AST] | None:
        """Where ``name``, as seen in ``module``, is defined: through imports, stars and re-exports."""
        if module.name in _seen:
            return None
        seen = _seen | {module.name}
        if name in module.defined:
            return module, module.defined[name]
        if name in module.imported:
            source, original = module.imported[name]
            target = self.module(source)
            return self.find(target, original or name, seen) if target else None
        for source in module.starred:
            target = self.module(source)
            found = self.find(target, name, seen) if target else None
            if found:
                return found
        return None
