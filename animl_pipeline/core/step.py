"""What a step declares of itself. The step cache makes the key of a step's artifact from it.

The key holds the step's name and VERSION, the digests of its inputs, its part of the plan, and the versions of the libraries
that shape its bytes (major.minor). The code is not part of the key: renaming or rewording it never invalidates a store. Whoever
changes what a step does raises its version; a committed digest of each step's code reminds of that (tests/project).
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from animl_pipeline.core.tables import Table


class Step(NamedTuple):
    """The declaration of one step.

    Attributes:
        name: the step's name, also its folder in the store.
        version: raised when the meaning of the step's output changes.
        sections: the sections of the plan that the step reads; it has no other access to the plan.
        reads: the tables that the step reads.
        writes: the tables that the step writes.
        libraries: distribution names of the libraries that shape the step's bytes.
    """

    name: str
    version: int
    sections: tuple[str, ...] = ()
    reads: tuple[Table, ...] = ()
    writes: tuple[Table, ...] = ()
    libraries: tuple[str, ...] = ()

    def library_versions(self) -> dict[str, str]:
        """Library name → installed version as major.minor; "" for an optional library that is not installed."""
        return {name: installed_version(name) for name in self.libraries}


@cache
def installed_version(distribution: str) -> str:
    """The installed version of a library as major.minor, "" where it is not installed."""
    try:
        return ".".join(version(distribution).split(".")[:2])
    except PackageNotFoundError:
        return ""
