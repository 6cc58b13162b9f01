"""How AWS is spoken to: patiently, and what it refuses becomes one line that names the permission or setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from animl_pipeline.core.errors import ReleaseError

if TYPE_CHECKING:
    from botocore.config import Config

T = TypeVar("T")

DENIED = frozenset({"AccessDenied", "AccessDeniedException", "403", "UnauthorizedOperation", "Forbidden"})
MISSING = frozenset({
    "404", "NoSuchKey", "NoSuchBucket", "NotFound", "NoSuchEntity", "ParameterNotFound", "RepositoryNotFoundException", "ImageNotFoundException",
})  # fmt: skip


@contextmanager
def spoken(what: str) -> Iterator[None]:
    """Turn what AWS answers into one clear line about ``what``."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

    try:
        yield
    except ClientError as e:
        error = e.response.get("Error", {})
        remedy = f"; your AWS user or role lacks the permission for {e.operation_name}" if error.get("Code") in DENIED else ""
        raise ReleaseError(
            f"{what}: {e.operation_name} was refused with {error.get('Code')}: {' '.join(error.get('Message', '').split())}{remedy}"
        ) from e
    except NoCredentialsError as e:
        raise ReleaseError(f"{what}: found no AWS credentials; set AWS_PROFILE or sign in") from e
    except NoRegionError as e:
        raise ReleaseError(f"{what}: found no AWS region; set AWS_DEFAULT_REGION, such as us-west-2") from e
    except (BotoCoreError, Boto3Error) as e:
        raise ReleaseError(f"{what}: AWS cannot be asked: {e}; check the network, the region and AWS's usual variables") from e


def patient() -> Config:
    """A serverless endpoint may take a minute to answer; standard retries cover throttling and passing faults."""
    from botocore.config import Config

    return Config(read_timeout=70, retries={"mode": "standard", "max_attempts": 5})


def hurried() -> Config:
    """For questions that a release can do without."""
    from botocore.config import Config

    return Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "max_attempts": 2})


def found(call: Callable[[], T]) -> T | None:
    """``call``'s answer, None where AWS says that there is no such thing."""
    from botocore.exceptions import ClientError

    try:
        return call()
    except ClientError as e:
        if code_of(e) in MISSING or (code_of(e) == "ValidationException" and "could not find" in e.response["Error"].get("Message", "").lower()):
            return None
        raise


def code_of(error: Any) -> str:
    """A ClientError's code."""
    return str(error.response.get("Error", {}).get("Code", ""))
