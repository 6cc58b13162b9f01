"""Offer a package's functions without importing their modules, so that a command does not wait for libraries that it does not use."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_exports(package: str, **modules: str) -> Callable[[str], Any]:
    """A ``__getattr__`` for a package's ``__init__``: a name's module is imported when the name is first used.

    ``modules``: exported name → its module in the package. The two must differ, since Python makes an imported module an attribute of its
    package.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return get
