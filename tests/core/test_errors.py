"""Errors keep what they say when they come from another process, and only those that may pass by themselves are retryable."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from animl_pipeline.core import errors
from animl_pipeline.core.errors import DamagedError, PipelineError, TrainingInterruptedError


def tree(root: type[PipelineError] = PipelineError) -> Iterator[type[PipelineError]]:
    for kind in root.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield kind
            yield from tree(kind)


@pytest.mark.parametrize("kind", list(tree()))
def test_an_error_from_another_process_is_the_same(kind: type[PipelineError]) -> None:
    error = kind("expected 2, found 1", code="too_few", expected=2)
    found = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    assert (type(found), str(found), found.code, found.details) == (kind, str(error), "too_few", {"expected": 2})


@pytest.mark.parametrize("kind", list(tree()))
def test_an_error_is_retryable_if_a_host_did_not_answer_or_the_next_try_repairs_it(kind: type[PipelineError]) -> None:
    assert kind.retryable is (kind.__name__.endswith("UnreachableError") or kind in {DamagedError, TrainingInterruptedError})


@pytest.mark.parametrize("kind", list(tree()))
def test_the_drawn_tree_holds_every_error(kind: type[PipelineError]) -> None:
    line = next(line for line in (errors.__doc__ or "").splitlines() if f" {kind.__name__} " in line)
    assert (" * " in line) is kind.retryable
