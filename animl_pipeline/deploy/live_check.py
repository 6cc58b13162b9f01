"""Asking the live endpoint as Animl asks it, and comparing its answers with the golden ones of the package."""

from __future__ import annotations

import base64
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.progress import track
from animl_pipeline.core.records import WHOLE_IMAGE, Answer, Artifact, Box, Latency
from animl_pipeline.deploy.aws_errors import spoken
from animl_pipeline.deploy.sagemaker_api import Aws
from animl_pipeline.storage.step_cache import Store

COLD = frozenset({"ModelNotReadyException", "ThrottlingException", "ServiceUnavailable", "InternalDependencyException"})
"""What an endpoint says that has to wake up first."""


class Checked(NamedTuple):
    """How many golden crops were sent, the largest absolute difference of a probability, and how long the answers took."""

    crops: int
    max_difference: float
    latency: Latency | None = None


def ask_endpoint(endpoint: str, image: bytes, box: Box = WHOLE_IMAGE) -> dict[str, float]:
    """Each class id's probability for one box of one picture, from the live endpoint.

    Raises:
        ReleaseError: there is no such endpoint, or it refused the request; the line is its own.
    """
    return _ask(Aws(), endpoint, image, box, patience_s=60)


def check_endpoint(aws: Aws, endpoint: str, package: Artifact, store: Store, tolerance: float, patience_s: float) -> Checked:
    """Send every golden crop of a package to the endpoint and compare.

    Raises:
        ReleaseError: it did not answer, answered other classes, or a probability is further off than ``tolerance``.
    """
    answers = reference_crops(package, store)
    worst, off, example = 0.0, 0, ""
    took: list[float] = []
    with track(f"checking {endpoint}", len(answers)) as step:
        for expected, image in answers:
            data = image.read_bytes()
            asked_at = time.perf_counter()
            said = _ask(aws, endpoint, data, expected.box, patience_s)
            took.append(1000 * (time.perf_counter() - asked_at))
            if said.keys() != expected.probabilities.keys():
                raise ReleaseError(f"the endpoint {endpoint} answers the classes {sorted(said)}, expected {sorted(expected.probabilities)}")
            difference, class_id = max((abs(said[c] - p), c) for c, p in expected.probabilities.items())
            off += not difference <= tolerance  # so that a NaN is off as well
            if not difference <= worst:
                worst = difference
                example = f"{expected.image}, {class_id}: expected {expected.probabilities[class_id]:.4f}, found {said[class_id]:.4f}"
            step(1)
    if off:
        raise ReleaseError(f"the endpoint {endpoint} answers {off} of {len(answers)} golden crops unlike offline, by up to {worst:.3g} ({example})")
    return Checked(len(answers), worst, _latency(took))


def _latency(took_ms: list[float]) -> Latency:
    """The first answer may have woken the endpoint up, so it stands apart (unless it is the only one)."""
    first, rest = took_ms[0], sorted(took_ms[1:] or took_ms)
    p50, p95 = (rest[math.ceil(share * len(rest)) - 1] for share in (0.5, 0.95))  # nearest rank
    return Latency(first_ms=round(first, 1), p50_ms=round(p50, 1), p95_ms=round(p95, 1))


def reference_crops(package: Artifact, store: Store) -> list[tuple[Answer, Path]]:
    """The golden answers of a package, each with its picture here: all that a check needs.

    Raises:
        ReleaseError: there are none.
        DamagedError: the package, or a file of it, is not whole in the store.
    """
    answers = [Answer.model_validate(row) for row in json.loads(store.path(package, "reference.json").read_bytes())]
    if not answers:
        raise ReleaseError("the package holds no golden answers, so the endpoint cannot be checked; run the step 'package' again")
    return [(answer, store.path(package, f"reference/{answer.image}")) for answer in answers]


def _ask(aws: Aws, endpoint: str, image: bytes, box: Box, patience_s: float) -> dict[str, float]:
    """One request as Animl sends it: base64 JSON without a ContentType. An endpoint that wakes up is waited for."""
    body = json.dumps({"image": base64.b64encode(image).decode(), "bbox": box.as_list()})
    deadline = time.monotonic() + patience_s
    while True:
        with spoken(f"the endpoint {endpoint}"):
            reply = _invoke(aws, endpoint, body, last=time.monotonic() > deadline)
        if reply is not None:
            return _probabilities(endpoint, reply)
        time.sleep(1)


def _invoke(aws: Aws, endpoint: str, body: str, *, last: bool) -> bytes | None:
    """The endpoint's answer; None when it is still waking up and this is not the last try."""
    from botocore.exceptions import ClientError

    try:
        return aws.runtime.invoke_endpoint(EndpointName=endpoint, Body=body)["Body"].read()
    except ClientError as e:
        response: dict[str, Any] = dict(e.response)
        if not last and (response.get("Error", {}).get("Code") in COLD or response.get("OriginalStatusCode") == 503):
            return None
        raise


def _probabilities(endpoint: str, reply: bytes) -> dict[str, float]:
    try:
        return {str(k): float(v) for k, v in json.loads(reply).items()}
    except (ValueError, TypeError, AttributeError) as e:
        raise ReleaseError(f"the endpoint {endpoint} answered {reply[:80]!r}, expected a JSON object of probabilities by class id") from e
