"""The number of downloads at a time grows while the host answers well, and falls when it has trouble."""

from __future__ import annotations

from animl_pipeline.steps.images.adaptive_download_limit import INITIAL_LIMIT, MIN_ROUND, AdaptiveLimit


def record(limit: AdaptiveLimit, n: int, seconds: float = 0.05, fail_every: int = 0) -> None:
    for i in range(n):
        limit.record(seconds, failed=fail_every > 0 and i % fail_every == 0)


def test_the_limit_grows_to_its_maximum_while_answers_come_well() -> None:
    limit = AdaptiveLimit(32)
    assert limit.value == INITIAL_LIMIT
    record(limit, 8 + 16 + 32)
    assert limit.value == 32
    record(limit, 320)
    assert limit.value == 32


def test_the_limit_halves_when_many_answers_fail_and_then_grows_by_one() -> None:
    limit = AdaptiveLimit(32)
    record(limit, 8 + 16)
    assert limit.value == 32
    record(limit, 32, fail_every=2)
    assert limit.value == 16
    record(limit, 16)
    assert limit.value == 17
    record(limit, 17 + MIN_ROUND * 20, fail_every=1)
    assert limit.value == 1


def test_a_few_failures_do_not_halve_the_limit_and_slow_answers_stop_its_growth() -> None:
    limit = AdaptiveLimit(64)
    record(limit, 8)
    record(limit, 16, fail_every=16)
    assert limit.value == 32
    record(limit, 32 * 5, seconds=0.5)
    assert limit.value == 32


def test_a_small_maximum_is_kept() -> None:
    limit = AdaptiveLimit(3)
    record(limit, 100)
    assert limit.value == 3
