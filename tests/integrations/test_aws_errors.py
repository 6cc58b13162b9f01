"""boto3's errors become one line each, retryable exactly if another try may succeed."""

from __future__ import annotations

import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, NoRegionError, ParamValidationError, ReadTimeoutError

from animl_pipeline.core.errors import AwsUnreachableError, ReleaseError
from animl_pipeline.integrations.aws_calls import explain_aws_errors, none_if_missing


def client_error(code: str, status: int = 400, message: str = "no") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}, "DescribeEndpoint")  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    "error",
    [
        client_error("ThrottlingException"),
        client_error("SlowDown", 503),
        client_error("SomethingNew", 500),
        EndpointConnectionError(endpoint_url="https://sagemaker"),
        ReadTimeoutError(endpoint_url="https://sagemaker"),
    ],
    ids=["throttled", "slow_down", "status_500", "no_connection", "no_answer"],
)
def test_throttling_and_silence_are_retryable(error: Exception) -> None:
    with pytest.raises(AwsUnreachableError) as caught, explain_aws_errors("the endpoint fox"):
        raise error
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (client_error("AccessDeniedException"), "permission_denied"),
        (client_error("ValidationException"), "aws_refused"),
        (NoCredentialsError(), "no_credentials"),
        (NoRegionError(), "no_region"),
        (ParamValidationError(report="a name too long"), "aws_refused"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_refusals_are_not_retryable(error: Exception, code: str) -> None:
    with pytest.raises(ReleaseError) as caught, explain_aws_errors("the endpoint fox"):
        raise error
    assert (caught.value.code, caught.value.retryable) == (code, False)


def test_a_refused_upload_has_the_reason_of_the_refusal() -> None:
    def upload() -> None:
        try:
            raise client_error("AccessDenied", 403)
        except ClientError as e:
            raise S3UploadFailedError(f"failed: {e}")  # noqa: B904 - boto3 raises it like this

    with pytest.raises(ReleaseError) as caught, explain_aws_errors("s3://zoo"):
        upload()
    assert caught.value.code == "permission_denied"


def test_a_missing_resource_is_none_and_another_refusal_is_not() -> None:
    def missing() -> None:
        raise client_error("ValidationException", message='Could not find endpoint "fox".')

    def invalid() -> None:
        raise client_error("ValidationException", message="1 validation error detected")

    assert none_if_missing(missing) is None
    with pytest.raises(ClientError):
        none_if_missing(invalid)
