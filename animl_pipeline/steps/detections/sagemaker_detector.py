"""A MegaDetector behind a SageMaker endpoint, as Animl runs it: the bytes of an image in, boxes out.

The endpoint answers with a list of ``{x1, y1, x2, y2, confidence, class}``: relative boxes and MegaDetector's classes 1 to 3 (animl-api,
modelInterfaces.ts).
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.animl_and_sagemaker_limits import MAX_REQUEST_BYTES, RESIZED_WIDTH
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import DetectionsError, DetectorUnreachableError
from animl_pipeline.core.write_megadetector_results import CATEGORIES
from animl_pipeline.steps.detections.detector import Detection, clean_detections

if TYPE_CHECKING:
    from mypy_boto3_sagemaker_runtime import SageMakerRuntimeClient

VERSION = 1
"""Raised when the same image is sent differently."""
LIBRARIES = ("pillow",)
MAX_JPEG_SIDE = 65_500
MAX_COORDINATE = 2.0
"""Relative coordinates end at 1, plus rounding. A larger number is in pixels or per cent."""
MAX_ATTEMPTS = 8
RETRYABLE_CODES = frozenset({
    "ThrottlingException", "ModelNotReadyException", "ServiceUnavailable", "InternalFailure", "InternalDependencyException",
})  # fmt: skip


class SagemakerDetector:
    """A detector behind an endpoint. Several threads send one image each."""

    batched = False
    categories = frozenset(CATEGORIES)

    def __init__(self, endpoint: str, confidence: float, settings: Settings) -> None:
        self._endpoint, self._confidence = endpoint, confidence
        self._client = _create_client(settings)

    def preprocess(self, data: bytes) -> bytes:
        image = open_image(data)  # an image that does not decode is not sent
        return data if len(data) <= MAX_REQUEST_BYTES else _shrink(image)

    def predict(self, inputs: Sequence[bytes]) -> list[list[Detection]]:
        return [clean_detections(d for d in self._parse(self._send(body)) if d.confidence >= self._confidence) for body in inputs]

    def _send(self, body: bytes) -> bytes:
        """The endpoint's answer, after several attempts if it throttles or is not ready.

        Raises:
            DetectorUnreachableError: it still does not answer.
            DetectionsError: it refuses the image.
        """
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.exceptions import ConnectionError as AwsConnectionError

        retrying = Retrying(
            retry=retry_if_exception(_is_retryable), stop=stop_after_attempt(MAX_ATTEMPTS), wait=wait_exponential_jitter(0.2, 20), reraise=True
        )
        try:
            return retrying(self._send_once, body)
        except (ClientError, BotoCoreError) as e:
            if _is_retryable(e) or isinstance(e, AwsConnectionError):
                raise DetectorUnreachableError(
                    f"the endpoint {self._endpoint!r} does not answer ({_describe(e)}); run again later, finished images are kept"
                ) from e
            raise DetectionsError(
                f"the endpoint {self._endpoint!r} refused an image ({_describe(e)}); check detections.detector, the AWS region and your permissions",
                code="endpoint_refused",
            ) from e

    def _send_once(self, body: bytes) -> bytes:
        return self._client.invoke_endpoint(EndpointName=self._endpoint, Body=body, ContentType="application/octet-stream")["Body"].read()

    def _parse(self, answer: bytes) -> list[Detection]:
        try:
            return [_detection(item) for item in json.loads(answer)]
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            start = answer[:80].decode("utf-8", "replace")
            raise DetectionsError(
                f"the endpoint {self._endpoint!r}: expected a list of {{x1, y1, x2, y2, confidence, class}} with coordinates from 0 to 1, found "
                f"{start!r}; is it a MegaDetector?",
                code="endpoint_not_megadetector",
            ) from e


def _detection(item: dict[str, Any]) -> Detection:
    category = str(int(item["class"]))
    if category not in CATEGORIES:
        raise ValueError(category)
    detection = Detection(category, float(item["confidence"]), *(float(item[k]) for k in ("y1", "x1", "y2", "x2")))
    if not all(abs(v) <= MAX_COORDINATE for v in detection[1:]):  # false for NaN, too
        raise ValueError(detection)
    return detection


def _is_retryable(error: BaseException) -> bool:
    """Whether another attempt may succeed: after throttling, a cold start, or a broken connection."""
    from botocore.exceptions import ClientError, HTTPClientError

    if isinstance(error, ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return error.response.get("Error", {}).get("Code", "") in RETRYABLE_CODES or status in {429, 502, 503, 504}
    return isinstance(error, HTTPClientError)


def _describe(error: Exception) -> str:
    response = getattr(error, "response", None)
    details = response.get("Error", {}) if isinstance(response, dict) else {}
    return f"{details.get('Code', 'error')}: {details.get('Message', '')}".strip(": ") if details else str(error)


def _shrink(image: Image.Image) -> bytes:
    """The image as a JPEG that the endpoint accepts: as wide as animl-api makes it, or narrower if that is still too large."""
    width = max(1, min(RESIZED_WIDTH, image.width, image.width * MAX_JPEG_SIDE // image.height))
    while True:
        buffer = io.BytesIO()
        height = min(MAX_JPEG_SIDE, max(1, round(image.height * width / image.width)))
        image.resize((width, height)).save(buffer, "JPEG", quality=90)
        if buffer.tell() <= MAX_REQUEST_BYTES or width == 1:
            return buffer.getvalue()
        width = max(1, int(width * 0.9 * (MAX_REQUEST_BYTES / buffer.tell()) ** 0.5))


def _create_client(settings: Settings) -> SageMakerRuntimeClient:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(read_timeout=90, connect_timeout=settings.timeout_s, max_pool_connections=settings.workers, retries={"max_attempts": 0})
    try:
        return boto3.client("sagemaker-runtime", config=config)
    except (BotoCoreError, ValueError) as e:
        raise DetectionsError(f"no AWS client for the detector's endpoint: {e}; set AWS's usual variables, such as AWS_REGION") from e
