"""A digest of each step's code, so that what a step does changes only with a decision about its version.

The digest covers the functions that use the step's STEP, and everything of animl_pipeline that they refer to, directly or not.
It is made so that only a change of behaviour changes it: docstrings, comments, type hints, log lines, messages of exceptions and
descriptions do not count, nor where a definition is, nor the names of functions, classes, methods, fields and variables.
Modules that only store, transport or report things (``PASSIVE``) do not count.

``python -m tests.project.step_digests`` lists the steps; with ``--accept`` it writes step_digests.json.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from animl_pipeline.core.step_declaration import Step

ROOT = Path(__file__).parents[2]
PACKAGE = "animl_pipeline"
COMMITTED = Path(__file__).with_suffix(".json")
PASSIVE = ("core.artifacts", "core.errors", "core.progress", "core.step_declaration", "config.settings", "storage", "integrations")
LOGGERS = frozenset({"log", "logger", "logging", "warnings"})
DESCRIPTIONS = {"Column": (2, 3), "Table": (1,), "track": (0,)}
"""Function → positions of arguments that only describe something."""
DESCRIPTION_KEYWORDS = frozenset({"description", "title", "what", "unit"})


class Definition(NamedTuple):
    """A function, class or constant at the top of a module."""

    module: str
    name: str


class Module:
    """The definitions and imports of one module."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"))

    @cached_property
    def definitions(self) -> dict[str, ast.stmt]:
        """Name → the statement that defines it."""
        found: dict[str, ast.stmt] = {}
        for node in self.tree.body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found[node.name] = node
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    for part in ast.walk(target):
                        if isinstance(part, ast.Name):
                            found[part.id] = node
        return found

    @cached_property
    def imports(self) -> dict[str, tuple[str, str]]:
        """Name here → module and name there ("" for the module itself), for imports from the package, wherever they are written."""
        found: dict[str, tuple[str, str]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
                for alias in node.names:
                    found[alias.asname or alias.name] = (node.module, alias.name)
        return found


class Code:
    """All modules of the package in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: dict[str, Module] = {}
        for path in sorted((folder / PACKAGE).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.modules[name] = Module(name, path)

    def resolve(self, module: str, name: str, attribute: str = "") -> Definition | None:
        """The definition that a name means in a module, or that ``name.attribute`` means if the name is a module."""
        if module not in self.modules or is_passive(module):
            return None
        here = self.modules[module]
        if name in here.definitions:
            return None if attribute else Definition(module, name)
        if name not in here.imports:
            return None
        there, inner = here.imports[name]
        if f"{there}.{inner}" in self.modules:
            return self.resolve(f"{there}.{inner}", attribute) if attribute else None
        return None if attribute else self.resolve(there, inner)

    def node(self, definition: Definition) -> ast.stmt:
        return self.modules[definition.module].definitions[definition.name]

    def steps(self) -> dict[str, Definition]:
        """Name of each step → the definition of its declaration."""
        found = {}
        for name, module in self.modules.items():
            for symbol, node in module.definitions.items():
                call = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
                if (
                    isinstance(call, ast.Call)
                    and isinstance(call.func, ast.Name)
                    and call.func.id == "Step"
                    and isinstance(call.args[0], ast.Constant)
                ):
                    found[str(call.args[0].value)] = Definition(name, symbol)
        return found

    def users(self, step: Definition) -> list[Definition]:
        """The definitions in the step's package that use its declaration."""
        package = step.module.rpartition(".")[0]
        return [
            Definition(name, symbol)
            for name, module in self.modules.items()
            if f"{name}.".startswith(f"{package}.")
            for symbol, node in module.definitions.items()
            if any(isinstance(part, ast.Name) and self.resolve(name, part.id) == step for part in ast.walk(node)) and Definition(name, symbol) != step
        ]


def is_passive(module: str) -> bool:
    inner = f"{module.removeprefix(f'{PACKAGE}.')}."
    return any(inner.startswith(f"{passive}.") for passive in PASSIVE)


class Writer:
    """Writes a definition and all that it refers to as text without names that the package gives."""

    def __init__(self, code: Code, step: Definition) -> None:
        self.code = code
        self.numbers: dict[Definition, int] = {}
        self.attributes: dict[str, int] = {}
        self.step = step
        self.module = ""
        self.scopes: list[dict[str, int]] = []

    def write(self, root: Definition) -> str:
        order = self._closure(root)
        names = {name for definition in order for name in _attributes_of(self.code.node(definition))}
        self.attributes = dict.fromkeys(names, -1)
        self.numbers = {definition: i for i, definition in enumerate(order)}
        texts = []
        for definition in order:
            self.module, self.scopes = definition.module, []
            node = self.code.node(definition)
            texts.append(self._text(node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else node))
        return "\n".join(texts)

    def _closure(self, root: Definition) -> list[Definition]:
        """The definitions that a root needs, in the order in which they are first referred to."""
        order: dict[Definition, None] = {root: None}
        todo = [root]
        while todo:
            at = todo.pop(0)
            for node in ast.walk(_stripped(self.code.node(at))):
                found = self._refers_to(at.module, node)
                if found is not None and found != self.step and found not in order:
                    order[found] = None
                    todo.append(found)
        return list(order)

    def _refers_to(self, module: str, node: ast.AST) -> Definition | None:
        if isinstance(node, ast.Name):
            return self.code.resolve(module, node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            return self.code.resolve(module, node.value.id, node.attr)
        return None

    # -- text ------------------------------------------------------------------------------------------------------------

    def _text(self, node: object) -> str:
        if isinstance(node, list):
            return f"[{' '.join(filter(None, map(self._text, node)))}]"
        if not isinstance(node, ast.AST):
            return repr(node)
        special = getattr(self, f"_write_{type(node).__name__.lower()}", None)
        return str(special(node)) if special else self._plain(node)

    def _plain(self, node: ast.AST, skip: tuple[str, ...] = ()) -> str:
        skip = (*skip, "ctx", "type_comment", "kind", "type_params")
        fields = [self._text(value) for name, value in ast.iter_fields(node) if name not in skip]
        return f"({type(node).__name__} {' '.join(fields)})"

    def _local(self, name: str) -> str | None:
        for depth, scope in enumerate(reversed(self.scopes)):
            if name in scope:
                if scope[name] < 0:
                    scope[name] = sum(n >= 0 for n in scope.values())
                return f"local{depth}.{scope[name]}"
        return None

    def _attribute(self, name: str) -> str:
        if name not in self.attributes:
            return name
        if self.attributes[name] < 0:
            self.attributes[name] = sum(n >= 0 for n in self.attributes.values())
        return f"attribute{self.attributes[name]}"

    def _write_name(self, node: ast.Name) -> str:
        local = self._local(node.id)
        if local is not None:
            return local
        found = self.code.resolve(self.module, node.id)
        if found == self.step:
            return "STEP"
        return f"definition{self.numbers[found]}" if found in self.numbers else node.id

    def _write_attribute(self, node: ast.Attribute) -> str:
        found = self._refers_to(self.module, node)
        if found in self.numbers:
            return f"definition{self.numbers[found]}"
        return f"{self._text(node.value)}.{self._attribute(node.attr)}"

    def _write_keyword(self, node: ast.keyword) -> str:
        return f"{self._attribute(node.arg or '**')}={self._text(node.value)}"

    def _write_arg(self, node: ast.arg) -> str:
        used = (
            [self._text(part) for part in ast.walk(node.annotation) if self._refers_to(self.module, part) in self.numbers] if node.annotation else []
        )
        return f"{self._local(node.arg)}:{used}"

    def _write_expr(self, node: ast.Expr) -> str:
        if isinstance(node.value, ast.Constant) or _is_log_call(node.value):
            return ""
        return self._plain(node)

    def _write_import(self, node: ast.Import) -> str:
        return "" if all(alias.asname is None for alias in node.names) else self._plain(node)

    def _write_importfrom(self, node: ast.ImportFrom) -> str:
        return ""

    def _write_annassign(self, node: ast.AnnAssign) -> str:
        return self._plain(node, skip=("annotation",) if self.scopes else ())

    def _write_call(self, node: ast.Call) -> str:
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""
        args = [a for i, a in enumerate(node.args) if i not in DESCRIPTIONS.get(name, ())]
        keywords = node.keywords
        if name in {"Field", *DESCRIPTIONS}:
            keywords = [k for k in keywords if k.arg not in DESCRIPTION_KEYWORDS]
        if name.endswith("Error"):
            args = [a for a in args if not _is_message(a)]
            keywords = []
        parameters = self._parameters(node.func)
        named = sorted(f"{parameters[k.arg]}={self._text(k.value)}" if k.arg in parameters else self._text(k) for k in keywords)
        return f"(Call {self._text(node.func)} {self._text(args)} {named})"

    def _parameters(self, function: ast.expr) -> dict[str | None, int]:
        """Name → position of the parameters, if the package defines the function."""
        found = self._refers_to(self.module, function)
        definition = self.code.node(found) if found in self.numbers else None
        if not isinstance(definition, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return {}
        return {a.arg: i for i, a in enumerate([*definition.args.posonlyargs, *definition.args.args, *definition.args.kwonlyargs])}

    def _write_functiondef(self, node: ast.FunctionDef) -> str:
        name = self._local(node.name) if self.scopes else None
        self.scopes.append(dict.fromkeys(_locals_of(node), -1))
        returned = [self._text(p) for p in ast.walk(node.returns) if self._refers_to(self.module, p) in self.numbers] if node.returns else []
        text = f"(def {name} {self._text(node.args)} {returned} {self._text(node.decorator_list)} {self._text(node.body)})"
        self.scopes.pop()
        return text

    _write_asyncfunctiondef = _write_functiondef

    def _write_lambda(self, node: ast.Lambda) -> str:
        self.scopes.append(dict.fromkeys(_locals_of(node), -1))
        text = self._plain(node)
        self.scopes.pop()
        return text

    def _write_classdef(self, node: ast.ClassDef) -> str:
        members = [
            f"{self._attribute(member.name)} {self._text(member)}" if isinstance(member, (ast.FunctionDef, ast.ClassDef)) else self._member(member)
            for member in node.body
        ]
        return f"(class {self._text(node.bases)} {self._text(node.keywords)} {self._text(node.decorator_list)} {[m for m in members if m]})"

    def _member(self, node: ast.stmt) -> str:
        if isinstance(node, (ast.AnnAssign, ast.Assign)):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            name = self._attribute(target.id) if isinstance(target, ast.Name) else self._text(target)
            hint = self._text(node.annotation) if isinstance(node, ast.AnnAssign) else ""
            return f"{name}:{hint}={self._text(node.value)}"
        return self._text(node)

    def _write_excepthandler(self, node: ast.ExceptHandler) -> str:
        return self._plain(node, skip=("name",))


def _stripped(node: ast.stmt) -> ast.AST:
    """A definition without its log calls, whose references do not count."""

    class Strip(ast.NodeTransformer):
        def visit_Expr(self, inner: ast.Expr) -> ast.AST | None:
            return None if _is_log_call(inner.value) else self.generic_visit(inner)

    return Strip().visit(ast.parse(ast.unparse(node)).body[0])  # type: ignore[no-any-return]  # NodeTransformer says Any


def _is_log_call(node: ast.expr) -> bool:
    call = node.func if isinstance(node, ast.Call) else None
    return isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name) and call.value.id in LOGGERS


def _is_message(node: ast.expr) -> bool:
    """Whether an argument of an exception is a text for people, and no word that the program counts by."""
    return any(
        isinstance(part, ast.JoinedStr) or (isinstance(part, ast.Constant) and isinstance(part.value, str) and " " in part.value)
        for part in ast.walk(node)
    )


def _locals_of(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> Iterator[str]:
    """The names that a function assigns, its parameters first."""
    arguments = function.args
    for a in [*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]:
        if a is not None:
            yield a.arg
    for part in ast.walk(function):
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            yield part.id
        elif (isinstance(part, (ast.FunctionDef, ast.ClassDef)) and part is not function) or (isinstance(part, ast.ExceptHandler) and part.name):
            yield part.name
        elif isinstance(part, ast.Import):
            yield from (alias.asname for alias in part.names if alias.asname)


def _attributes_of(node: ast.stmt) -> Iterator[str]:
    """The names of methods and fields that a class defines."""
    for part in ast.walk(node):
        if isinstance(part, ast.ClassDef):
            for member in part.body:
                if isinstance(member, (ast.FunctionDef, ast.ClassDef)):
                    yield member.name
                elif isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                    yield member.target.id
        elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            yield part.attr


def step_digests(folder: Path = ROOT) -> dict[str, str]:
    """Step → digest of its code."""
    code = Code(folder)
    return {name: _digest(code, step) for name, step in sorted(code.steps().items())}


def _digest(code: Code, step: Definition) -> str:
    parts = [hashlib.sha256(Writer(code, step).write(root).encode()).hexdigest() for root in code.users(step)]
    package = code.modules[step.module].path.parent
    parts += [hashlib.sha256(path.read_bytes()).hexdigest() for path in package.iterdir() if path.is_file() and path.suffix not in {".py", ".pyc"}]
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:32]


def step_versions() -> dict[str, int]:
    """Step → its version."""
    found = {}
    for name, definition in Code(ROOT).steps().items():
        step = getattr(importlib.import_module(definition.module), definition.name)
        assert isinstance(step, Step)
        found[name] = step.version
    return found


def current() -> dict[str, dict[str, str | int]]:
    """What step_digests.json should hold."""
    versions = step_versions()
    return {name: {"version": versions[name], "digest": digest} for name, digest in step_digests().items()}


def accept() -> None:
    """Write step_digests.json."""
    COMMITTED.write_text(json.dumps(current(), indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--accept"]:
        accept()
    for step_name, found_now in current().items():
        sys.stdout.write(f"{step_name:12} version {found_now['version']}  {found_now['digest']}\n")
