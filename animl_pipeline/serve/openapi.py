"""The endpoint's contract as an OpenAPI 3.1 document, with the loaded model's classes in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from animl_pipeline.serve.limits import MAX_BODY
from animl_pipeline.serve.request_parsing import MAX_BOXES

if TYPE_CHECKING:
    from animl_pipeline.core.records import ModelCard

JsonObject = dict[str, Any]

REFUSALS = {
    400: "the request is wrong: not JSON, no image, not a picture, too many pixels, a box that is empty or outside",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "the Content-Type is none of those above",
    429: "as many requests as fit are in hand; ask again after Retry-After seconds",
    503: "the model is still loading; ask again after Retry-After seconds",
}
IMAGE = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR4nGOsSLFhYGBgYmBgYGBgAAANhgEcXNbYcAAAAABJRU5ErkJggg=="
"""A PNG of 2 x 2 pixels."""
EXAMPLES: JsonObject = {
    "one box": {"value": {"image": IMAGE, "bbox": [0.25, 0.1, 0.75, 0.9]}},
    "a box as text": {"value": {"image": IMAGE, "bbox": "[0.25, 0.1, 0.75, 0.9]"}},
    "the whole picture": {"value": {"image": IMAGE}},
    "several boxes": {"value": {"image": IMAGE, "bboxes": [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]}},
}
BOX: JsonObject = {
    "type": "array",
    "items": {"type": "number", "minimum": 0, "maximum": 1},
    "minItems": 4,
    "maxItems": 4,
    "description": "[ymin, xmin, ymax, xmax], relative to the picture's height and width; ymin < ymax, xmin < xmax",
}
BOX_OR_TEXT: JsonObject = {
    "anyOf": [BOX, {"type": "string", "description": 'the same as text: "[ymin, xmin, ymax, xmax]"; "" is the whole picture'}, {"type": "null"}]
}
BASE64: JsonObject = {"type": "string", "minLength": 1, "contentEncoding": "base64", "description": "a JPEG or PNG as the camera wrote it"}
BYTES: JsonObject = {"schema": {"type": "string", "format": "binary", "description": "a picture; the box is the whole of it"}}


def openapi(card: ModelCard | None = None, max_body: int = MAX_BODY) -> JsonObject:
    """The document; without a card the answer's classes are left open."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "animl-pipeline endpoint",
            "version": card.version if card else "loading",
            "description": f"Classifies the animal in a box of a camera-trap picture. A request is at most {max_body:,} bytes.",
        },
        "paths": {
            "/ping": {"get": _ping()},
            "/invocations": {"post": _invocations(_answer(card))},
            "/openapi.json": {"get": {"summary": "This document", "responses": {"200": _json("this document", {"type": "object"})}}},
        },
    }


def _ping() -> JsonObject:
    return {"summary": "Whether the model is loaded", "responses": {"200": {"description": "it is"}, "503": _refusal(503)}}


def _invocations(answer: JsonObject) -> JsonObject:
    several = {"type": "array", "items": answer, "minItems": 1, "maxItems": MAX_BOXES, "description": "one answer a box of bboxes, in their order"}
    return {
        "summary": "Every class's probability for one box, or for each of several boxes, of one picture",
        "requestBody": {
            "required": True,
            "description": 'Without a Content-Type, or as octet-stream, a body that begins with "{" is read as JSON, any other as a picture.',
            "content": {
                "application/json": {"schema": _question(), "examples": EXAMPLES},
                "multipart/form-data": {"schema": _parts()},
                "image/jpeg": BYTES,
                "image/png": BYTES,
            },
        },
        "responses": {
            "200": _json("probabilities by class id; they sum to 1", {"anyOf": [answer, several]}),
            **{str(status): _refusal(status) for status in REFUSALS},
        },
    }


def _question() -> JsonObject:
    several = {"anyOf": [{"type": "array", "items": BOX, "minItems": 1, "maxItems": MAX_BOXES}, {"type": "string"}, {"type": "null"}]}
    return {
        "type": "object",
        "required": ["image"],
        "properties": {"image": BASE64, "bbox": BOX_OR_TEXT, "bboxes": several},
        "description": "bbox or bboxes, not both; without them, the whole picture",
    }


def _parts() -> JsonObject:
    text = {"type": "string"}
    return {
        "type": "object",
        "properties": {"image": {"type": "string", "format": "binary"}, "bbox": text, "bboxes": text},
        "required": ["image"],
        "description": "image as bytes or base64, or one part of any name that holds the JSON",
    }


def _answer(card: ModelCard | None) -> JsonObject:
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    if card is None:
        return {"type": "object", "additionalProperties": probability, "minProperties": 2}
    ids = list(card.class_ids())
    return {"type": "object", "properties": dict.fromkeys(ids, probability), "required": ids, "additionalProperties": False}


def _refusal(status: int) -> JsonObject:
    error = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"], "additionalProperties": False}
    return _json(REFUSALS[status], error)


def _json(description: str, schema: JsonObject) -> JsonObject:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
