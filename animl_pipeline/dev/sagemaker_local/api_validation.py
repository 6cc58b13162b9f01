"""Checks a request against botocore's description of SageMaker's API, and makes errors in AWS's form."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from botocore.model import ServiceModel, Shape, StructureShape
from botocore.validate import ParamValidator

ACCOUNT = "123456789012"
REGION = "us-west-2"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/local"
"""The role that exists on this machine, and the image that stands for the endpoint program."""
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/animl-endpoint:local"


class ApiError(Exception):
    """An error in AWS's form: a code, a message, an HTTP status, and further fields of its shape."""

    def __init__(self, code: str, message: str, status: int = 400, **more: object) -> None:
        super().__init__(message)
        self.code, self.message, self.status, self.more = code, message, status, more


def invalid(message: str) -> ApiError:
    """An error as AWS's ValidationException."""
    return ApiError("ValidationException", message)


def arn(kind: str, name: str) -> str:
    """The ARN of a model, endpoint-config or endpoint; AWS writes names in lower case there."""
    return f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{kind}/{name.lower()}"


def check_request(operation: str, request: Any) -> dict[str, Any]:
    """The request, if it fits ``operation``.

    Raises:
        ApiError: ValidationException naming what is missing, unknown, of the wrong type, or out of range.
    """
    shape = service().operation_model(operation).input_shape
    if not isinstance(request, dict):
        raise ApiError("SerializationException", "the body is not a JSON object")
    if shape is None:  # an operation without parameters
        return {}
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        raise invalid(report.generate_report())
    _check_texts(request, shape)
    return request


@cache
def service() -> ServiceModel:
    """Botocore's description of SageMaker's API."""
    import botocore.session

    return botocore.session.Session().get_service_model("sagemaker")


def _check_texts(value: Any, shape: Shape, path: str = "") -> None:
    """Lengths, patterns and enumerations, which ParamValidator leaves to the server."""
    if isinstance(shape, StructureShape):
        for name, inner in value.items():
            _check_texts(inner, shape.members[name], f"{path}.{name}".lstrip("."))
    elif shape.type_name == "list":
        for i, inner in enumerate(value):
            _check_texts(inner, shape.member, f"{path}.{i + 1}.member")  # type: ignore[attr-defined]  # a ListShape
    elif shape.type_name == "string":
        _check_text(value, shape, path)


def _check_text(value: str, shape: Shape, path: str) -> None:
    rules = shape.metadata
    error = None
    if len(value) > rules.get("max", len(value)):
        error = f"Member must have length less than or equal to {rules['max']}"
    elif rules.get("enum") and value not in rules["enum"]:
        error = f"Member must satisfy enum value set: [{', '.join(rules['enum'])}]"
    elif rules.get("pattern") and "\\p{" not in rules["pattern"] and not re.fullmatch(rules["pattern"], value):  # \p is Java's
        error = f"Member must satisfy regular expression pattern: {rules['pattern']}"
    if error:
        raise invalid(f"1 validation error detected: Value '{value}' at '{path[:1].lower() + path[1:]}' failed to satisfy constraint: {error}")
