"""boto3 errors as one clear line each, and the retry settings of boto3 clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from animl_pipeline.core.errors import AwsUnreachableError, ReleaseError

if TYPE_CHECKING:
    from botocore.config import Config

T = TypeVar("T")

DENIED = frozenset({"AccessDenied", "AccessDeniedException", "403", "UnauthorizedOperation", "Forbidden"})
MISSING = frozenset({
    "404", "NoSuchKey", "NoSuchBucket", "NotFound", "NoSuchEntity", "ParameterNotFound", "RepositoryNotFoundException", "ImageNotFoundException",
})  # fmt: skip
THROTTLED = frozenset({
    "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottledException", "TooManyRequestsException", "RequestLimitExceeded",
    "SlowDown", "RequestTimeout", "RequestTimeoutException", "ServiceUnavailable", "ServiceUnavailableException", "InternalFailure",
})  # fmt: skip
"""Error codes after which the same call may succeed, besides every HTTP status from 500 on."""


@contextmanager
def explain_aws_errors(what: str) -> Iterator[None]:
    """Turn each boto3 error inside the block into one line about ``what``.

    Raises:
        AwsUnreachableError: AWS throttles, does not answer, or has a fault of its own; another try may succeed.
        ReleaseError: AWS refused the call; the line names the missing permission or setting. ``code`` is "permission_denied", "no_credentials",
            "no_region" or "aws_refused".
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, NoCredentialsError, NoRegionError

    try:
        yield
    except (ClientError, Boto3Error) as e:
        refusal = e if isinstance(e, ClientError) else e.__context__  # boto3 wraps the refusal of an upload
        if isinstance(refusal, ClientError):
            raise _refused(what, refusal) from e
        raise ReleaseError(f"{what}: {e}", code="aws_refused") from e
    except NoCredentialsError as e:
        raise ReleaseError(f"{what}: found no AWS credentials; set AWS_PROFILE or sign in", code="no_credentials") from e
    except NoRegionError as e:
        raise ReleaseError(f"{what}: found no AWS region; set AWS_DEFAULT_REGION, such as us-west-2", code="no_region") from e
    except (ConnectionError, HTTPClientError) as e:
        raise AwsUnreachableError(f"{what}: no answer from AWS: {e}; check the network, the region and the AWS variables") from e
    except BotoCoreError as e:
        raise ReleaseError(f"{what}: {e}", code="aws_refused") from e


def _refused(what: str, error: Any) -> ReleaseError:
    """The error to raise for a botocore ClientError."""
    code = error_code(error)
    message = f"{what}: {error.operation_name} was refused with {code}: {' '.join(error.response.get('Error', {}).get('Message', '').split())}"
    if is_temporary(error):
        return AwsUnreachableError(message, aws_code=code)
    if code in DENIED:
        remedy = f"; your AWS user or role lacks the permission for {error.operation_name}"
        return ReleaseError(message + remedy, code="permission_denied", aws_code=code)
    return ReleaseError(message, code="aws_refused", aws_code=code)


def is_temporary(error: Any) -> bool:
    """Whether the call that ended with this ClientError may succeed later: throttled, or a fault on AWS's side."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return error_code(error) in THROTTLED or int(status) >= 500


def retrying_config() -> Config:
    """Client settings for calls that must succeed: up to five tries, and 70 s for an answer (a serverless endpoint may need a minute)."""
    from botocore.config import Config

    return Config(read_timeout=70, retries={"mode": "standard", "max_attempts": 5})


def quick_config() -> Config:
    """Client settings for calls whose answer is useful but not necessary: two tries, 10 s each."""
    from botocore.config import Config

    return Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "max_attempts": 2})


def none_if_missing(call: Callable[[], T]) -> T | None:
    """The result of ``call``, or None if AWS answers that the thing does not exist."""
    from botocore.exceptions import ClientError

    try:
        return call()
    except ClientError as e:
        code = error_code(e)
        if code in MISSING or (code == "ValidationException" and "could not find" in e.response["Error"].get("Message", "").lower()):
            return None
        raise


def error_code(error: Any) -> str:
    """The error code of a botocore ClientError, "" if it has none."""
    return str(error.response.get("Error", {}).get("Code", ""))
