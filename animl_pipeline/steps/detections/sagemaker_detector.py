"""A MegaDetector behind a SageMaker endpoint, as Animl runs it: a picture's bytes in, boxes out.

The answer is a list of ``{x1, y1, x2, y2, confidence, class}``, relative, with MegaDetector's classes 1 to 3 (animl-api,
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
from animl_pipeline.core.errors import DetectionsError
from animl_pipeline.core.imaging import open_image
from animl_pipeline.steps.detections.detector import ANIMAL, CATEGORIES, PERSON, VEHICLE, Detection, tidy

if TYPE_CHECKING:
    from mypy_boto3_sagemaker_runtime import SageMakerRuntimeClient

RECIPE = "sagemaker-endpoint/1"
"""Moves on when the same picture would be asked about otherwise."""

MOST_BYTES, WIDTH, TALLEST = 4_000_000, 3500, 65_500
"""A serverless endpoint takes 4 MB; larger pictures are made as wide as animl-api makes them, and no JPEG is taller."""

FAR = 2.0
"""A number of an answer that is larger is no share of a picture: those end at 1, but for what rounding and clipping leave."""

ATTEMPTS = 8
HEALS = frozenset({"ThrottlingException", "ModelNotReadyException", "ServiceUnavailable", "InternalFailure", "InternalDependencyException"})


class AskedEndpoint:
    """An endpoint; several pictures are asked about at a time."""

    alone = True
    categories = frozenset({ANIMAL, PERSON, VEHICLE})

    def __init__(self, endpoint: str, confidence: float, settings: Settings) -> None:
        self._endpoint, self._confidence = endpoint, confidence
        self._client = _client(settings)

    def preprocess(self, data: bytes) -> bytes:
        image = open_image(data)  # what does not decode is not sent
        return data if len(data) <= MOST_BYTES else _smaller(image)

    def predict(self, prepared: Sequence[bytes]) -> list[list[Detection]]:
        return [tidy(f for f in self._found(self._ask(body)) if f.confidence >= self._confidence) for body in prepared]

    def _ask(self, body: bytes) -> bytes:
        from botocore.exceptions import BotoCoreError, ClientError

        patiently = Retrying(retry=retry_if_exception(_heals), stop=stop_after_attempt(ATTEMPTS), wait=wait_exponential_jitter(0.2, 20), reraise=True)
        try:
            return patiently(self._ask_once, body)
        except ClientError as e:
            said = f"{e.response.get('Error', {}).get('Code', 'error')}: {e.response.get('Error', {}).get('Message', '')}".strip(": ")
            raise DetectionsError(
                f"the endpoint {self._endpoint!r} refused a picture ({said}); check detections.detector, AWS's region and your permissions"
            ) from e
        except BotoCoreError as e:
            raise DetectionsError(
                f"the endpoint {self._endpoint!r} cannot be reached ({e}); check the network and AWS's usual variables, then run again: "
                "what was seen is kept"
            ) from e

    def _ask_once(self, body: bytes) -> bytes:
        return self._client.invoke_endpoint(EndpointName=self._endpoint, Body=body, ContentType="application/octet-stream")["Body"].read()

    def _found(self, answer: bytes) -> list[Detection]:
        try:
            return [_object(item) for item in json.loads(answer)]
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            start = answer[:80].decode("utf-8", "replace")
            raise DetectionsError(
                f"the endpoint {self._endpoint!r}: expected a list of {{x1, y1, x2, y2, confidence, class}}, shares of the picture from 0 to 1, "
                f"found {start!r}; is it a MegaDetector?"
            ) from e


def _object(item: dict[str, Any]) -> Detection:
    category = str(int(item["class"]))
    if category not in CATEGORIES:
        raise ValueError(category)
    found = Detection(category, float(item["confidence"]), *(float(item[k]) for k in ("y1", "x1", "y2", "x2")))
    if not all(abs(v) <= FAR for v in found[1:]):  # pixels, per cent, or no numbers
        raise ValueError(found)
    return found


def _heals(error: BaseException) -> bool:
    """Whether a later try may succeed: throttling, a cold start, a connection that broke."""
    from botocore.exceptions import ClientError, HTTPClientError

    if isinstance(error, ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return error.response.get("Error", {}).get("Code", "") in HEALS or status in {429, 503}
    return isinstance(error, HTTPClientError)


def _smaller(image: Image.Image) -> bytes:
    """The picture as a JPEG that an endpoint takes: as wide as animl-api makes it, or narrower where that does not suffice."""
    width = max(1, min(WIDTH, image.width, image.width * TALLEST // image.height))
    while True:
        buffer = io.BytesIO()
        height = min(TALLEST, max(1, round(image.height * width / image.width)))
        image.resize((width, height)).save(buffer, "JPEG", quality=90)
        if buffer.tell() <= MOST_BYTES or width == 1:
            return buffer.getvalue()
        width = max(1, int(width * 0.9 * (MOST_BYTES / buffer.tell()) ** 0.5))


def _client(settings: Settings) -> SageMakerRuntimeClient:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(read_timeout=90, connect_timeout=settings.timeout_s, max_pool_connections=settings.workers, retries={"max_attempts": 0})
    try:
        return boto3.client("sagemaker-runtime", config=config)
    except (BotoCoreError, ValueError) as e:
        raise DetectionsError(f"no endpoint can be asked: {e}; set AWS's usual variables, such as AWS_REGION") from e
