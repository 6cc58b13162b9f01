"""The declaration of a step, from which the step cache makes the key of the step's artifact.

The key holds the step's name and version, the digests of its inputs, its part of the plan, and the versions (major.minor) of the
libraries that shape its files. The code is not part of the key, so renaming or rewording it never invalidates a store. Raise the
version when you change what a step does; a test compares a digest of each step's code with a committed one
(tests/project/step_digests.py).
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
        """Library name → installed version as major.minor; "" for a library that is not installed."""
        return {name: installed_version(name) for name in self.libraries}


@cache
def installed_version(distribution: str) -> str:
    """The installed version of a library as major.minor; "" if it is not installed."""
    try:
        return ".".join(version(distribution).split(".")[:2])
    except PackageNotFoundError:
        return ""
