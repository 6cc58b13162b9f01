"""The code of a room as a digest: part of every step's key, so that a changed room is run again and a comment is not.

The digest covers the module (of a package: all its files) and every module of this package that it imports, directly
or not, except the passive cellar (``PASSIVE``), whose records and messages do not change what a step makes. Docstrings
and comments do not count.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
PASSIVE = frozenset(
    {
        "animl",
        "corner",
        "decoding",
        "object_store",
        "errors",
        "memory",
        "plan",
        "progress",
        "records",
        "remote",
        "settings",
        "sources",
        "store",
        "weights",
    }
)


@cache
def code_digest(room: str) -> str:
    """The sha256 of a room's code and of what it imports from this package. ``room`` is a dotted name below animl_pipeline."""
    found: dict[str, str] = {}
    todo = [room]
    while todo:
        name = todo.pop()
        if name in found or name.split(".")[0] in PASSIVE:
            continue
        for path in _data_files(name):
            found[f"{name}:{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
        found.setdefault(name, "")
        for path in _files(name):
            found[f"{name}:{path.name}"], rooms = _read(path)
            todo.extend(rooms)
    return hashlib.sha256("\n".join(f"{k}={found[k]}" for k in sorted(found)).encode()).hexdigest()


def _files(name: str) -> list[Path]:
    """A module's file, or all of a package's."""
    base = HERE.joinpath(*name.split("."))
    return sorted(base.glob("*.py")) if base.is_dir() else [base.with_suffix(".py")]


def _data_files(name: str) -> list[Path]:
    """What a package holds besides code, such as a page's template."""
    base = HERE.joinpath(*name.split("."))
    return sorted(p for p in base.iterdir() if p.is_file() and p.suffix != ".py") if base.is_dir() else []


@cache
def _read(path: Path) -> tuple[str, frozenset[str]]:
    """A file's code without its docstrings and comments, and the rooms of this package that it imports; one walk finds both."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    rooms: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            rooms |= _rooms(node)
        elif isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            _strip_docstring(node)
    return ast.dump(tree), frozenset(rooms)


def _rooms(node: ast.ImportFrom) -> set[str]:
    if not node.module or not node.module.startswith("animl_pipeline"):
        return set()
    inner = node.module.removeprefix("animl_pipeline").lstrip(".")
    return {inner.split(".")[0]} if inner else {a.name for a in node.names}


def _strip_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        node.body = node.body[1:] or [ast.Pass()]
