"""The report server as a process, asked over HTTP: what it lists and gives out, who may ask, and what it never gives out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import requests
import yaml
from starlette.testclient import TestClient
from typer.testing import CliRunner

from animl_pipeline.cli.main import app
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.evaluation_results import Report
from animl_pipeline.core.refuse_foreign_requests import Allowed
from animl_pipeline.reports_server.report_app import HEADERS, report_app
from animl_pipeline.storage.store import Store, open_store
from tests.support.colour_models import ReportPage, island_plan
from tests.support.report_store import AUTH, NOTE, fill_with_reports, report_server


class Served(NamedTuple):
    """A running report server, its store and the reports in it."""

    address: str
    store: Store
    reports: list[Report]

    def get(self, path: str, auth: tuple[str, str] | None = AUTH, **headers: str) -> requests.Response:
        """The answer; redirects are not followed and the path is sent as it is."""
        request = requests.Request("GET", self.address, headers=headers, auth=auth).prepare()
        request.url = f"{self.address}{path}"
        return requests.Session().send(request, timeout=60, allow_redirects=False)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("reports")
    store = open_store(Settings(store=str(folder / "store"), cache=folder / "cache"))
    reports = fill_with_reports(store)
    with report_server(folder, str(folder / "store"), ANIML_REPORTS_URL="https://reports.example.org/") as address:
        yield Served(address, store, reports)


def test_the_index_lists_versions_releases_and_pages_with_links_that_work(served: Served) -> None:
    answer = served.get("/")
    page = ReportPage(answer.text)
    assert answer.status_code == 200
    for report in served.reports:
        assert f"/steps/evaluation/{report.evaluation.key}/report.html" in page.addresses
    assert "trial: train.epochs 3" in page.text
    assert f"island team: {NOTE}" in page.text  # as text
    assert "<b>looked" not in answer.text
    assert page.tags.count("circle") == 2  # versions by the plan that were scored as in production
    assert [a.rpartition("/")[2] for a in page.addresses if "/steps/monitor/" in a] == ["monitor.html", "months.csv"]
    for path in {a for a in page.addresses if a.startswith("/steps/")}:
        assert served.get(path).status_code == 200, path


def test_a_report_comes_as_it_was_stored_with_its_tables_as_downloads(served: Served) -> None:
    evaluation = served.reports[0].evaluation
    folder = f"/steps/evaluation/{evaluation.key}"
    page = served.get(f"{folder}/report.html")
    assert page.content == served.store.path(evaluation, "report.html").read_bytes()
    tables = [a for a in ReportPage(page.text).addresses if a.endswith(".csv")]
    assert "missed_invaders.csv" in tables
    for name in tables:  # relative to the page
        table = served.get(f"{folder}/{name}")
        assert table.content == served.store.path(evaluation, name).read_bytes()
        assert table.headers["Content-Disposition"].startswith("attachment")


def test_two_versions_are_compared_by_class_with_intervals_of_the_change(served: Served) -> None:
    first, second = (report.package.digest for report in (served.reports[0], served.reports[2]))
    page = ReportPage(served.get(f"/compare?a={first}&b={second}").text)
    on_crops = page.text[page.text.index("On the same test crops") : page.text.index("As in production")]
    rat = on_crops[on_crops.index("rat") :]
    old, new = (next(c.f1 for c in served.reports[i].metrics.classes if c.id == "rat") for i in (0, 2))
    assert f"{new - old:+.2f}" in rat
    assert " to " in rat  # an interval of the change
    assert "Not both versions were scored as in production" in page.text
    production = ReportPage(served.get(f"/compare?a={served.reports[1].package.digest}&b={second}").text).text
    assert "+0.10" in production[production.index("As in production") :]
    assert served.get(f"/compare?a={first}&b={'0' * 64}").status_code == 404
    assert served.get("/compare").status_code == 404


def test_nothing_is_answered_without_the_password_to_other_hosts_or_to_other_pages(served: Served) -> None:
    page = f"/steps/evaluation/{served.reports[0].evaluation.key}/report.html"
    for path in ("/", page, "/compare", "/nothing"):
        for auth in (None, (AUTH[0], "guessed"), ("", "")):
            answer = served.get(path, auth)
            assert answer.status_code == 401, path
            assert "isle" not in answer.text
        for foreign in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}):
            answer = served.get(path, AUTH, **foreign)
            assert answer.status_code == 403, (path, foreign)
            assert "Access-Control-Allow-Origin" not in answer.headers
        assert requests.post(f"{served.address}{path}", auth=AUTH, timeout=60).status_code in {404, 405}
    assert served.get("/", AUTH, Host="reports.example.org").status_code == 200
    assert served.get("/health", None).text == "ok"


def test_every_answer_forbids_scripts_guessed_types_and_referrers(served: Served) -> None:
    page = f"/steps/evaluation/{served.reports[0].evaluation.key}/report.html"
    answers = [served.get("/"), served.get(page), served.get("/nothing"), served.get("/", None), served.get("/", AUTH, Host="evil.example")]
    for answer in answers:
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    assert HEADERS["Content-Security-Policy"].startswith("default-src 'none'")


def test_only_pages_and_what_is_beside_them_are_given_out(served: Served) -> None:
    report, store = served.reports[0], served.store
    monitor = next(name for name in store.object_store.names("steps/monitor/") if name.endswith("monitor.html")).rpartition("/")[0]
    refused = [
        f"/steps/training/{report.model_artifact.key}/model.onnx",
        f"/steps/calibration/{store.manifest(report.evaluation).key}/thresholds.json",
        f"/{monitor}/model.onnx",
        f"/{monitor}/manifest.json",
        f"/{monitor}/../../../format.json",
        f"/{monitor}/..%2f..%2f..%2fformat.json",
        f"/{monitor}/%2e%2e/monitor.html",
        f"/steps/evaluation/{'0' * 64}/report.html",
        f"/steps/..%2freports/{report.evaluation.key}/report.html",
        "/steps/evaluation/newest.json/report.html",
        "/reports/isle/newest.json",
    ]
    assert {path: served.get(path).status_code for path in refused} == dict.fromkeys(refused, 404)


def test_a_changed_report_is_not_given_out(served: Served) -> None:
    evaluation = served.reports[1].evaluation
    file = served.store.path(evaluation, "report.html")
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"isle", b"evil", 1))
    try:
        answer = served.get(f"/steps/evaluation/{evaluation.key}/report.html")
        assert answer.status_code == 500
        assert "evil" not in answer.text
    finally:
        file.write_bytes(whole)


def test_the_command_prints_where_the_checked_report_of_a_version_is(served: Served, tmp_path: Path) -> None:
    plan = tmp_path / "isle.yaml"
    plan.write_text(yaml.safe_dump(island_plan().model_dump(mode="json", by_alias=True, exclude_defaults=True)), encoding="utf-8")
    for version, report in (("", served.reports[2]), ("2222", served.reports[1])):
        shown = CliRunner().invoke(app, ["report", str(plan), "--store", str(served.store.object_store), "--version", version])
        assert shown.exit_code == 0, shown.output
        assert shown.output.strip() == str(served.store.path(report.evaluation, "report.html"))


def test_before_the_first_training_the_index_says_so_and_makes_no_store(tmp_path: Path) -> None:
    asgi = report_app(Settings(store=str(tmp_path / "store")), ":".join(AUTH), Allowed(frozenset({"testserver"})))
    answer = TestClient(asgi).get("/", auth=AUTH)
    assert answer.status_code == 200
    assert "no report yet" in answer.text
    assert not (tmp_path / "store").exists()


def test_reports_of_an_s3_store_are_served_too(served: Served, bucket: str, tmp_path: Path) -> None:
    copy = open_store(Settings(store=f"s3://{bucket}/store", cache=tmp_path / "a"))
    for name in served.store.object_store.names(""):
        if name.startswith(("reports/", "releases/", "steps/evaluation/", "steps/monitor/")):
            data = served.store.object_store.read(name)
            assert data is not None
            copy.object_store.put(name, data)
    asgi = report_app(Settings(store=f"s3://{bucket}/store", cache=tmp_path / "b"), ":".join(AUTH), Allowed(frozenset({"testserver"})))
    client = TestClient(asgi)
    evaluation = served.reports[0].evaluation
    page = f"/steps/evaluation/{evaluation.key}/report.html"
    assert page in ReportPage(client.get("/", auth=AUTH).text).addresses
    assert client.get(page, auth=AUTH).content == served.store.path(evaluation, "report.html").read_bytes()
