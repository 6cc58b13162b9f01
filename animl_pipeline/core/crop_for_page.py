"""A crop of an animal as an HTML page shows it."""

from __future__ import annotations

import base64
import io

from animl_pipeline.core.artifacts import BlobReader
from animl_pipeline.core.box_type import Box
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import PipelineError
from animl_pipeline.core.model_card import ModelInput
from animl_pipeline.core.model_input import extract_crop

CROP = ModelInput(size=192, margin=0.15)
"""How a crop is shown: with more around the animal than the model sees."""


def crop_data_uri(reader: BlobReader, blob: str, box: Box) -> str:
    """A crop of an image as a data URI of a small JPEG; "" where the image cannot be shown."""
    try:
        crop = extract_crop(open_image(reader.blob(blob)), box, CROP)
    except PipelineError:
        return ""
    buffer = io.BytesIO()
    crop.save(buffer, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
