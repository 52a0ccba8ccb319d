"""Small real data for the engine's tests: the standard library's own code, sentences and functions."""

from __future__ import annotations

import ast
import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

MODULES = (
    "argparse", "ast", "calendar", "configparser", "csv", "datetime", "difflib", "dis", "enum", "fractions",
    "ftplib", "functools", "glob", "gzip", "heapq", "inspect", "ipaddress", "locale", "mailbox", "optparse",
    "os", "pathlib", "pdb", "pickle", "platform", "random", "shutil", "socket", "statistics", "string",
    "subprocess", "tarfile", "tempfile", "textwrap", "threading", "tokenize", "traceback", "turtle",
    "typing", "zipfile",
)  # fmt: skip
CODE = re.compile(r"(?=.{20,100}$)(?:return |if |for |self\.|[a-z_]+ = ).*[\])}:]")
"""A line of code that looks like nothing else."""


def sources() -> Iterator[str]:
    """The source of some modules of this interpreter's standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for name in MODULES:
        for path in (root / f"{name}.py", root / name / "__init__.py"):
            if path.is_file():
                yield path.read_text(encoding="utf-8")


def _documented() -> Iterator[tuple[str, str]]:
    """Every function with a docstring: its source without it, and the docstring."""
    for text in sources():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (doc := ast.get_docstring(node)) and len(node.body) > 1:
                node.body = node.body[1:]
                yield ast.unparse(node), doc


def write(folder: Path) -> dict[str, Path]:
    """Files of real text for each kind of task."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / name for name in ("code.txt", "prose.txt", "labelled.jsonl", "summaries.jsonl")}
    pairs = list(_documented())
    sentences = [
        " ".join(sentence.split())
        for _, doc in pairs
        for sentence in re.split(r"(?<=[.])\s", doc)
        if 30 < len(sentence) < 200
    ]
    lines = [line.strip() for text in sources() for line in text.splitlines() if CODE.fullmatch(line.strip())]
    files["code.txt"].write_text("\n".join(sources())[:1_200_000], encoding="utf-8")
    files["prose.txt"].write_text("\n".join(sentences), encoding="utf-8")
    count = min(len(sentences), len(lines), 1500)
    with open(files["labelled.jsonl"], "w", encoding="utf-8") as file:
        for sentence, line in zip(sentences[:count], lines[:: max(1, len(lines) // count)], strict=False):
            file.write(json.dumps({"text": sentence, "label": "prose"}) + "\n")
            file.write(json.dumps({"text": line, "label": "code"}) + "\n")
    with open(files["summaries.jsonl"], "w", encoding="utf-8") as file:
        for code, doc in pairs:
            file.write(json.dumps({"document": code[:600], "summary": doc.splitlines()[0]}) + "\n")
    return files
