"""Send the package's reference images to the live endpoint, as Animl sends images, and compare the answers with the offline ones."""

from __future__ import annotations

import base64
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.box_type import WHOLE_IMAGE, Box
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.progress import track
from animl_pipeline.core.release_and_reference_types import Latency, ReferencePrediction
from animl_pipeline.deploy.aws_api import AwsApi
from animl_pipeline.deploy.resource_names import read_package_card
from animl_pipeline.inference.classifier import answer_parents
from animl_pipeline.integrations.aws_calls import error_code, explain_aws_errors
from animl_pipeline.storage.store import Store

NOT_READY = frozenset({"ModelNotReadyException", "ThrottlingException", "ServiceUnavailable", "InternalDependencyException"})
"""Error codes of an endpoint that is still starting."""


class LiveCheckResult(NamedTuple):
    """Number of images compared, largest absolute difference of a probability, and response times."""

    images: int
    max_difference: float
    latency: Latency | None = None

    def as_dict(self) -> dict[str, Any]:
        """The result under the field names of a release record."""
        return {"checked": self.images, "max_difference": self.max_difference, "latency": self.latency}


def invoke_endpoint(endpoint: str, image: bytes, box: Box = WHOLE_IMAGE) -> dict[str, float]:
    """The live endpoint's probabilities for one box of one image, by class id.

    Raises:
        ReleaseError: the endpoint does not exist or refused the request.
    """
    return ask_endpoint(AwsApi(), endpoint, image, box, timeout_s=60)


def check_endpoint(aws: AwsApi, endpoint: str, package: Artifact, store: Store, tolerance: float, timeout_s: float) -> LiveCheckResult:
    """Compare the endpoint's answers with all reference predictions of a package.

    Raises:
        ReleaseError: the endpoint did not answer, has other classes, or differs by more than ``tolerance`` (code "answers_differ"); or its most
            probable class is not the last key (code "wrong_order").
    """
    references, card = read_reference_predictions(package, store), read_package_card(package, store)
    largest, failed, example = 0.0, 0, ""
    times_ms: list[float] = []
    with track(f"checking {endpoint}", len(references)) as progress:
        for expected, image in references:
            data = image.read_bytes()
            started = time.perf_counter()
            answer = ask_endpoint(aws, endpoint, data, expected.box, timeout_s)
            times_ms.append(1000 * (time.perf_counter() - started))
            if answer.keys() != expected.probabilities.keys():
                raise ReleaseError(
                    f"the endpoint {endpoint} answers with the classes {sorted(answer)}, expected {sorted(expected.probabilities)}",
                    code="answers_differ",
                )
            if list(answer.values()) != sorted(answer.values()):
                raise ReleaseError(
                    f"the endpoint {endpoint} does not answer with the most probable class last, so Animl would show a wrong one; the endpoint's "
                    "image is older than this version: push the present one (docs/aws.md) and set ANIML_ENDPOINT_IMAGE to it",
                    code="wrong_order",
                )
            # A parent must follow from the endpoint's own answers: it is 0 or not, and a child may be as good as at its threshold.
            right = expected.probabilities | answer_parents(answer, card)
            difference, class_id = max((abs(answer[c] - p), c) for c, p in right.items())
            failed += not difference <= tolerance  # written this way, NaN counts as a failure
            if not difference <= largest:
                largest = difference
                example = f"{expected.image}, {class_id}: expected {right[class_id]:.4f}, found {answer[class_id]:.4f}"
            progress(1)
    if failed:
        raise ReleaseError(
            f"the endpoint {endpoint} differs from the offline model for {failed} of {len(references)} reference images, "
            f"by up to {largest:.3g} ({example})",
            code="answers_differ",
            failed=failed,
        )
    return LiveCheckResult(len(references), largest, _latency(times_ms))


def read_reference_predictions(package: Artifact, store: Store) -> list[tuple[ReferencePrediction, Path]]:
    """A package's reference predictions, each with the local path of its image.

    Raises:
        ReleaseError: the package has none.
        DamagedError: the package in the store is incomplete or damaged.
    """
    rows = json.loads(store.path(package, "reference_predictions.json").read_bytes())
    if not rows:
        raise ReleaseError("the package has no reference predictions, so the endpoint cannot be checked; run the step 'package' again")
    predictions = [ReferencePrediction.model_validate(row) for row in rows]
    return [(p, store.path(package, f"reference_predictions/{p.image}")) for p in predictions]


def _latency(times_ms: list[float]) -> Latency:
    """Response times, the first one apart because it may include the endpoint's start."""
    first, rest = times_ms[0], sorted(times_ms[1:] or times_ms)
    p50, p95 = (rest[math.ceil(share * len(rest)) - 1] for share in (0.5, 0.95))  # nearest-rank percentiles
    return Latency(first_ms=round(first, 1), p50_ms=round(p50, 1), p95_ms=round(p95, 1))


def ask_endpoint(aws: AwsApi, endpoint: str, image: bytes, box: Box, timeout_s: float) -> dict[str, float]:
    """The probabilities for one box, asked as Animl asks (base64 JSON, no ContentType), again while the endpoint is starting or throttles."""
    body = json.dumps({"image": base64.b64encode(image).decode(), "bbox": box.as_list()})
    deadline = time.monotonic() + timeout_s
    while True:
        with explain_aws_errors(f"the endpoint {endpoint}"):
            answer = _invoke_once(aws, endpoint, body, last_try=time.monotonic() > deadline)
        if answer is not None:
            return _parse_probabilities(endpoint, answer)
        time.sleep(1)


def _invoke_once(aws: AwsApi, endpoint: str, body: str, *, last_try: bool) -> bytes | None:
    """The endpoint's answer; None if it is still starting and this is not the last try."""
    from botocore.exceptions import ClientError

    try:
        return aws.runtime.invoke_endpoint(EndpointName=endpoint, Body=body)["Body"].read()
    except ClientError as e:
        if not last_try and (error_code(e) in NOT_READY or dict(e.response).get("OriginalStatusCode") == 503):
            return None
        raise


def _parse_probabilities(endpoint: str, answer: bytes) -> dict[str, float]:
    try:
        return {str(k): float(v) for k, v in json.loads(answer).items()}
    except (ValueError, TypeError, AttributeError) as e:
        raise ReleaseError(
            f"the endpoint {endpoint} answered {answer[:80]!r}, expected a JSON object of probabilities by class id", code="answers_differ"
        ) from e
