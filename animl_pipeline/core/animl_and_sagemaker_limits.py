"""Limits of Animl and of SageMaker serverless endpoints that several packages must keep to."""

from __future__ import annotations

MAX_IMAGE_BYTES = 2_800_000
"""Animl resizes larger images before it asks an endpoint, so the endpoint never gets them as they are."""
RESIZED_WIDTH = 3500
"""Width in pixels that Animl resizes them to."""
MAX_REQUEST_BYTES = 4_000_000
"""A serverless endpoint takes no larger request."""
