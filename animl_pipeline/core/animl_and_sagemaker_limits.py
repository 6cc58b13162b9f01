"""Limits of Animl and of SageMaker serverless endpoints that several packages must keep to."""

from __future__ import annotations

MAX_IMAGE_BYTES = 2_800_000
"""Animl resizes larger images before it asks an endpoint, so the endpoint never gets them as they are."""
RESIZED_WIDTH = 3500
"""Width in pixels that Animl resizes them to."""
MAX_REQUEST_BYTES = 4_000_000
"""A serverless endpoint takes no larger request."""
MIN_THRESHOLD = 1e-6
"""The least confidence threshold of a class. Animl takes a threshold of 0 for the model's default and not for "keep all"."""
NEVER = 2.0
"""A threshold that no probability reaches."""
ANIML_BATCH_CONCURRENCY = 80
"""Requests that Animl's batches send at the same time: 8 Lambdas with 10 messages. A message is tried 5 times, then its labels are lost."""
MODELS_WITH_OWN_INTERFACES = {
    "megadetector_v5a": "it is a detector",
    "megadetector_v5b": "it is a detector",
    "megadetector_v1000.0.0-redwood": "it is a detector",
    "nzi-adsv1": "its endpoint gets boxes as [x, y, w, h]",
    "speciesnet": "its endpoint gets other fields",
    "speciesnet-all": "its endpoint gets other fields",
    "speciesnet-classifier": "its endpoint gets other fields",
    "alitav3": "it refuses single new images",
    "camera-trap-vehicle-classifier": "it refuses single new images",
    "deepfaune-ne": "it refuses single new images",
    "ircv2": "it refuses single new images",
    "nzdoc": "it refuses single new images",
    "sdzwa-andesv1": "it refuses single new images",
}
"""Model id → how Animl's interface for it differs from the one for which this pipeline makes endpoints (animl-api of March 2026)."""
