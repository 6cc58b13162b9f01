"""The local SageMaker through boto3, as a real server with real endpoint programs: states, refusals, restarts, deaths."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from botocore.exceptions import BotoCoreError, ClientError

from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.dev.sagemaker_local import Faults, local_sagemaker
from animl_pipeline.dev.sagemaker_local.api_validation import ApiError, check_request
from animl_pipeline.dev.sagemaker_local.endpoint_processes import EndpointProcess
from animl_pipeline.dev.sagemaker_local.state_file import StateFile
from tests.support.endpoint_process import wait_until
from tests.support.sagemaker_cloud import BUCKET, ROLE, Cloud, archive_of, empty_archive


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with local_sagemaker(tmp_path_factory.mktemp("sagemaker") / "state") as addresses:
        yield Cloud(addresses)


@pytest.mark.parametrize("service", ["sagemaker", "s3"])
def test_a_web_page_or_a_foreign_host_name_gets_nothing_from_the_services(cloud: Cloud, service: str) -> None:
    sagemaker, s3 = cloud.sm.meta.endpoint_url, f"{cloud.s3.meta.endpoint_url}/{BUCKET}/page.html"
    method, address = ("POST", sagemaker) if service == "sagemaker" else ("PUT", s3)
    target = {"X-Amz-Target": "SageMaker.ListEndpoints"}
    assert requests.request(method, address, data="{}", headers=target, timeout=30).status_code == 200
    for foreign in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        refused = requests.request(method, address, data="{}", headers=target | foreign, timeout=30)
        assert (refused.status_code, refused.headers.get("Access-Control-Allow-Origin")) == (403, None), foreign


def test_an_endpoint_is_created_answers_is_updated_and_deleted(cloud: Cloud, tmp_path: Path) -> None:
    one, two = (cloud.config(archive_of(tmp_path, *classes)) for classes in (("red", "green", "blue"), ("fox", "bird", "skunk")))
    name = f"e-{uuid.uuid4().hex[:8]}"
    made = cloud.sm.create_endpoint(EndpointName=name, EndpointConfigName=one)
    assert made["EndpointArn"].endswith(f":endpoint/{name}")
    assert cloud.sm.describe_endpoint(EndpointName=name)["EndpointStatus"] == "Creating"
    assert cloud.settled(name)["EndpointStatus"] == "InService"
    assert set(cloud.ask(name)) == {"red", "green", "blue"}
    cloud.sm.update_endpoint(EndpointName=name, EndpointConfigName=two)
    under_way = cloud.sm.describe_endpoint(EndpointName=name)
    assert (under_way["EndpointStatus"], under_way["EndpointConfigName"]) == ("Updating", one)
    done = cloud.settled(name)
    assert (done["EndpointStatus"], done["EndpointConfigName"]) == ("InService", two)
    assert set(cloud.ask(name)) == {"fox", "bird", "skunk"}
    assert name in [e["EndpointName"] for e in cloud.sm.list_endpoints(StatusEquals="InService", NameContains=name)["Endpoints"]]
    cloud.sm.delete_endpoint(EndpointName=name)
    wait_until(lambda: refusal(lambda: cloud.sm.describe_endpoint(EndpointName=name)), "the endpoint is gone")
    assert "not found" in refusal(lambda: cloud.ask(name))


def refusal(call: Callable[[], Any]) -> str:
    """How AWS refused, or nothing."""
    try:
        call()
    except ClientError as e:
        return str(e)
    return ""


def test_a_failed_update_leaves_the_old_config_in_service_and_says_why(cloud: Cloud, tmp_path: Path) -> None:
    good, bad = cloud.config(archive_of(tmp_path, "red", "green", "blue")), cloud.config(empty_archive())
    name = cloud.endpoint(good)
    cloud.sm.update_endpoint(EndpointName=name, EndpointConfigName=bad)
    found = cloud.settled(name)
    assert (found["EndpointStatus"], found["EndpointConfigName"]) == ("InService", good)
    assert "expected a model card" in found["FailureReason"]
    assert set(cloud.ask(name)) == {"red", "green", "blue"}


def test_an_endpoint_that_cannot_start_is_failed_with_the_programs_last_word(cloud: Cloud) -> None:
    config = cloud.config(b"this is no archive")
    cloud.sm.create_endpoint(EndpointName="never", EndpointConfigName=config)
    found = cloud.settled("never")
    assert found["EndpointStatus"] == "Failed"
    assert "Failed to extract model data archive" in found["FailureReason"]
    assert "has failed" in refusal(lambda: cloud.sm.update_endpoint(EndpointName="never", EndpointConfigName=config))
    cloud.sm.delete_endpoint(EndpointName="never")
    wait_until(lambda: refusal(lambda: cloud.sm.describe_endpoint(EndpointName="never")), "the endpoint is gone")


def test_an_archive_that_reaches_out_of_its_folder_is_not_unpacked(cloud: Cloud) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../../outside"))
    cloud.sm.create_endpoint(EndpointName="outside", EndpointConfigName=cloud.config(buffer.getvalue()))
    assert "outside" in cloud.settled("outside")["FailureReason"]


def test_no_request_is_lost_during_updates(cloud: Cloud, tmp_path: Path) -> None:
    configs = [cloud.config(archive_of(tmp_path, *classes)) for classes in (("red", "green"), ("fox", "bird"))]
    name = cloud.endpoint(configs[0])
    answers: list[frozenset[str]] = []
    faults: list[Exception] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            try:
                answers.append(frozenset(cloud.ask(name)))
            except (ClientError, BotoCoreError, ValueError) as e:
                faults.append(e)

    clients = [threading.Thread(target=client) for _ in range(4)]
    for c in clients:
        c.start()
    for config in (configs[1], configs[0], configs[1]):
        cloud.sm.update_endpoint(EndpointName=name, EndpointConfigName=config)
        assert cloud.settled(name)["EndpointConfigName"] == config
    stop.set()
    for c in clients:
        c.join()
    assert faults == []
    assert set(answers) == {frozenset({"red", "green"}), frozenset({"fox", "bird"})}


Call = Callable[[Cloud], Any]
REFUSED: dict[str, tuple[str, Call]] = {
    "a model without its package": (
        "Could not find model data",
        lambda c: c.sm.create_model(ModelName="m", ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "i", "ModelDataUrl": f"s3://{BUCKET}/none"}),
    ),
    "a model without a role": ("executionRoleArn", lambda c: c.sm.create_model(ModelName="m", PrimaryContainer={"Image": "i"})),
    "a name with a dot": ("regular expression", lambda c: c.sm.create_endpoint(EndpointName="a.b", EndpointConfigName="c")),
    "a name too long": ("length less than", lambda c: c.sm.create_endpoint(EndpointName="a" * 64, EndpointConfigName="c")),
    "an endpoint without its config": ("Could not find endpoint config", lambda c: c.sm.create_endpoint(EndpointName="a", EndpointConfigName="c")),
    "an update of nothing": ("Could not find endpoint", lambda c: c.sm.update_endpoint(EndpointName="nothing", EndpointConfigName="c")),
    "a delete of nothing": ("Could not find model", lambda c: c.sm.delete_model(ModelName="nothing")),
    "a config without its model": (
        "Could not find model",
        lambda c: c.sm.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[{"VariantName": "v", "ModelName": "nothing"}]),
    ),
    "a question to nobody": ("not found", lambda c: c.ask("nobody")),
    "an operation of another day": ("not supported", lambda c: c.sm.list_processing_jobs()),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_as_aws_does(cloud: Cloud, what: str) -> None:
    reason, call = REFUSED[what]
    assert reason in refusal(lambda: call(cloud))


def test_names_are_taken_once_and_an_endpoint_in_between_takes_no_orders(cloud: Cloud, tmp_path: Path) -> None:
    config = cloud.config(archive_of(tmp_path, "red", "green"))
    name = cloud.endpoint(config)
    assert "already existing" in refusal(lambda: cloud.sm.create_endpoint(EndpointName=name, EndpointConfigName=config))
    cloud.sm.update_endpoint(EndpointName=name, EndpointConfigName=config)
    assert "in-progress" in refusal(lambda: cloud.sm.update_endpoint(EndpointName=name, EndpointConfigName=config))
    cloud.settled(name)


def test_a_program_that_refuses_is_a_model_error_with_its_reason(cloud: Cloud, tmp_path: Path) -> None:
    name = cloud.endpoint(cloud.config(archive_of(tmp_path, "red", "green")))
    with pytest.raises(cloud.rt.exceptions.ModelError) as caught:
        cloud.rt.invoke_endpoint(EndpointName=name, Body=b'{"image": "%%%"}')
    assert caught.value.response["OriginalStatusCode"] == 400  # type: ignore[typeddict-item]  # ModelError's own member
    assert "not base64" in str(caught.value)
    assert "at most" in refusal(lambda: cloud.rt.invoke_endpoint(EndpointName=name, Body=b"x" * (4 * 1024 * 1024 + 1)))


def test_tags_and_pages_are_kept(cloud: Cloud, tmp_path: Path) -> None:
    url = cloud.put(archive_of(tmp_path, "red", "green"))
    for i in range(3):
        cloud.sm.create_model(
            ModelName=f"tagged-{i}",
            ExecutionRoleArn=ROLE,
            PrimaryContainer={"Image": "i", "ModelDataUrl": url},
            Tags=[{"Key": "animl:n", "Value": str(i)}],
        )
    pages = list(cloud.sm.get_paginator("list_models").paginate(NameContains="tagged", PaginationConfig={"PageSize": 2}))
    assert [[m["ModelName"] for m in p["Models"]] for p in pages] == [["tagged-2", "tagged-1"], ["tagged-0"]]
    arn = cloud.sm.describe_model(ModelName="tagged-1")["ModelArn"]
    cloud.sm.add_tags(ResourceArn=arn, Tags=[{"Key": "b", "Value": "c"}])
    assert cloud.sm.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "animl:n", "Value": "1"}, {"Key": "b", "Value": "c"}]


def test_requests_are_checked_with_botocores_own_description() -> None:
    with pytest.raises(ApiError, match="Missing required parameter"):
        check_request("CreateEndpoint", {"EndpointName": "a"})
    with pytest.raises(ApiError, match="Unknown parameter"):
        check_request("DescribeModel", {"ModelName": "a", "Colour": "red"})
    with pytest.raises(ApiError, match="enum value set"):
        check_request("ListEndpoints", {"StatusEquals": "Asleep"})


def test_the_ledger_is_the_same_after_a_restart(tmp_path: Path) -> None:
    state_file = StateFile(tmp_path)
    state_file.add("model", "m", {"ModelName": "m"}, [{"Key": "a", "Value": "b"}])
    state_file.add("endpoint", "e", {"EndpointStatus": "Creating"})
    state_file.change("endpoint", "e", EndpointStatus="InService")
    again = StateFile(tmp_path)
    assert again.get("model", "m") == state_file.get("model", "m")
    assert again.get("endpoint", "e")["EndpointStatus"] == "InService"
    with pytest.raises(ApiError):
        again.get("model", "n")


@contextmanager
def faulty(cloud: Cloud, **faults: float) -> Iterator[None]:
    """Let something go wrong until the end of the block."""
    cloud.set_faults(**faults)
    try:
        yield
    finally:
        cloud.set_faults(**Faults().model_dump())


def test_states_last_as_long_as_asked_and_programs_fail_as_asked(cloud: Cloud, tmp_path: Path) -> None:
    config = cloud.config(archive_of(tmp_path, "red", "green"))
    name = cloud.endpoint(config)
    for faults, reason in (
        ({"image_cannot_start": 1}, "CannotStartContainerError"),
        ({"never_pings": 1, "ping_s": 0.2}, "did not pass the ping health check"),
        ({"update_fails": 1}, "Request to service failed"),
    ):
        with faulty(cloud, **faults):
            cloud.sm.update_endpoint(EndpointName=name, EndpointConfigName=config)
            found = cloud.settled(name)
        assert (found["EndpointStatus"], found["EndpointConfigName"]) == ("InService", config)
        assert reason in found["FailureReason"]
    with faulty(cloud, switch_s=1.5):
        asked = time.monotonic()
        cloud.sm.update_endpoint(EndpointName=name, EndpointConfigName=config)
        assert cloud.settled(name)["EndpointStatus"] == "InService"
        assert time.monotonic() - asked > 1.5
    assert set(cloud.ask(name)) == {"red", "green"}


def test_quotas_and_throttling_come_as_aws_says_them(cloud: Cloud, tmp_path: Path) -> None:
    config = cloud.config(archive_of(tmp_path, "red", "green"), concurrency=30)
    with faulty(cloud, quota_concurrency=29):
        assert "ResourceLimitExceeded" in refusal(lambda: cloud.sm.create_endpoint(EndpointName="much", EndpointConfigName=config))
    name = cloud.endpoint(config)
    with faulty(cloud, throttled=1, invocations_throttled=1):
        assert "ThrottlingException" in refusal(cloud.sm.list_models)
        assert refusal(cloud.sm.list_models) == ""
        assert "ThrottlingException" in refusal(lambda: cloud.ask(name))
        assert set(cloud.ask(name)) == {"red", "green"}


def test_a_slow_answer_is_cut_off_and_more_requests_than_allowed_are_throttled(cloud: Cloud, tmp_path: Path) -> None:
    name = cloud.endpoint(cloud.config(archive_of(tmp_path, "red", "green"), concurrency=2))
    with faulty(cloud, answer_delay_s=0.3, answer_s=0.2):
        assert "timed out" in refusal(lambda: cloud.ask(name))
    with faulty(cloud, answer_delay_s=50), ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(lambda: refusal(lambda: cloud.ask(name))) for _ in range(6)]
        wait_until(lambda: sum(a.done() for a in asked) == 4, "four are refused", seconds=40)
        cloud.set_faults(answer_delay_s=0)
    assert sorted("ThrottlingException" in a.result() for a in asked) == [False, False, True, True, True, True]
    assert [a.result() for a in asked].count("") == 2
    with faulty(cloud, max_payload=100):
        assert "at most 100" in refusal(lambda: cloud.ask(name))


def test_a_config_names_one_size_and_a_machine_of_its_own_takes_larger_requests(cloud: Cloud, tmp_path: Path) -> None:
    config = cloud.config(archive_of(tmp_path, "red", "green"))
    model = cloud.sm.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"][0]["ModelName"]
    none: Any = [{"VariantName": "v", "ModelName": model}]
    assert "either ServerlessConfig or InstanceType" in refusal(
        lambda: cloud.sm.create_endpoint_config(EndpointConfigName="none", ProductionVariants=none)
    )
    machine: Any = [{"VariantName": "v", "ModelName": model, "InstanceType": "ml.c6i.large", "InitialInstanceCount": 1}]
    cloud.sm.create_endpoint_config(EndpointConfigName=f"machine-{model}", ProductionVariants=machine)
    name = cloud.endpoint(f"machine-{model}")
    with faulty(cloud, max_payload=100):
        assert set(cloud.ask(name)) == {"red", "green"}


def test_a_fault_that_there_is_not_is_refused(cloud: Cloud) -> None:
    with pytest.raises(ReleaseError, match="faults: colour: Extra inputs"):
        cloud.set_faults(colour=1)


def test_more_requests_than_an_endpoint_may_have_in_hand_are_throttled(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        running = EndpointProcess(process, tmp_path / "log", max_concurrency=2)
        assert [running.accept_request() for _ in range(3)] == [True, True, False]
        running.request_done()
        assert running.accept_request()
