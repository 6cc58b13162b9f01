"""`animl-pipeline doctor`, and how every command finds the Prefect server: as Prefect does, or with one line if it cannot."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from animl_pipeline.cli.doctor import check_prefect_server
from animl_pipeline.config.settings import Settings
from animl_pipeline.storage.store import open_store
from tests.support.command_line import run_command
from tests.support.paths import ROOT
from tests.support.tiny_project import write_project
from tests.support.web_server import served


def doctor(tmp_path: Path, **variables: str) -> dict[str, str]:
    """What the doctor says of each thing, with its mark first."""
    usual = {"ANIML_STORE": str(tmp_path / "store"), "ANIML_CACHE": str(tmp_path / "cache"), "PIP_NO_INDEX": "1", "COLUMNS": "1000"}
    done = run_command("doctor", **usual | variables)
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    return {what: f"{mark} {found}" for mark, what, found in lines}


def server(tmp_path: Path, **variables: str) -> str:
    """What the doctor says of Prefect's server."""
    code = (
        "from animl_pipeline.cli.prefect_connection import prepare_prefect; prepare_prefect();"
        "from animl_pipeline.cli.doctor import check_prefect_server; c = check_prefect_server(); print(c.mark, c.found)"
    )
    here = os.environ | {"ANIML_STORE": str(tmp_path / "store"), "PREFECT_HOME": str(tmp_path / "home")} | variables
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=here, timeout=120, check=True)
    return " ".join(done.stdout.split())


def server_by_settings(**changes: str) -> str:
    """The same in this process, which has imported Prefect already, with these of its settings."""
    from prefect import settings

    with settings.temporary_settings({getattr(settings, name): value for name, value in changes.items()}):
        check = check_prefect_server()
    return " ".join(f"{check.mark} {check.found}".split())


def test_the_doctor_checks_the_rest_when_the_store_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said = doctor(tmp_path, ANIML_STORE=str(tmp_path / "file" / "a" / "store"))
    assert said["store"].startswith("ERROR ")
    assert said["disk"].endswith(f" GB free at {tmp_path}")
    assert said.keys() >= {"python", "weights", "animl", "aws", "server"}
    assert said["server"].startswith("note no PREFECT_API_URL: an embedded")


def profile(home: Path, **settings: str) -> str:
    """A folder whose active Prefect profile has these settings, for PREFECT_HOME."""
    home.mkdir(exist_ok=True)
    lines = "".join(f'{name} = "{value}"\n' for name, value in settings.items())
    (home / "profiles.toml").write_text(f'active = "rangers"\n[profiles.rangers]\n{lines}', encoding="utf-8")
    return str(home)


@pytest.mark.parametrize("address", ["{server}", "{server}/"])
def test_the_doctor_checks_the_health_of_the_prefect_server(prefect_address: str, address: str) -> None:
    assert server_by_settings(PREFECT_API_URL=address.format(server=prefect_address)).startswith(f"ok {prefect_address}")


def test_the_doctor_asks_the_server_of_the_active_profile(tmp_path: Path, prefect_address: str) -> None:
    assert server(tmp_path, PREFECT_HOME=profile(tmp_path / "home", PREFECT_API_URL=prefect_address)) == f"ok {prefect_address}"
    nowhere = profile(tmp_path / "home", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert server(tmp_path, PREFECT_HOME=nowhere).startswith("ERROR expected a Prefect server at http://127.0.0.1:9/api")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("", "ERROR expected Prefect's API at {site} (PREFECT_API_URL), found a server that answers 404, not as Prefect's does; the address of a"),
        (
            "/app",
            "ERROR expected Prefect's API at {site}/app (PREFECT_API_URL), found a server that answers 200, not as Prefect's does; the address of a",
        ),
        ("/shut/api", "ERROR the Prefect server at {site}/shut/api asks for a password, and did not accept ours (401): set PREFECT_API_AUTH_STRING"),
    ],
)
def test_the_doctor_recognises_a_server_that_is_not_prefects(where: str, said: str) -> None:
    with served({}) as site:
        site.status = {"app/health": 200, "shut/api/health": 401}
        site.bodies = {"app/health": b"<html>"}
        found = server_by_settings(PREFECT_API_URL=site.address.replace("://", "://ranger:owl@") + where)
    assert found.startswith(said.format(site=site.address))
    assert "owl" not in found


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/api", "http://ranger:owl/@127.0.0.1:9/api", "nowhere"])
def test_the_doctor_finds_no_prefect_server_where_none_is(address: str) -> None:
    found = server_by_settings(PREFECT_API_URL=address)
    assert found.startswith("ERROR expected a Prefect server at ")
    assert "(PREFECT_API_URL), reached none (" in found
    assert "owl" not in found


def test_settings_that_prefect_cannot_read_are_one_line_of_the_doctor_and_of_every_command(tmp_path: Path) -> None:
    plan = write_project(tmp_path, locations=1, each=1)
    open_store(Settings(store=str(tmp_path / "store")))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "profiles.toml").write_text('active = "x', encoding="utf-8")
    settings = [
        ({"PREFECT_CLIENT_MAX_RETRIES": "many"}, "Prefect's setting max_retries (of its ClientSettings) is not valid: Input"),
        ({"PREFECT_API_URL": "http://["}, "Prefect's settings are not valid: Invalid IPv6 URL"),
        ({"PREFECT_HOME": str(tmp_path / "torn")}, "Prefect's profiles in profiles.toml of PREFECT_HOME (~/.prefect) cannot be read: "),
        ({"PREFECT_API_SSL_CERT_FILE": str(plan)}, f"PREFECT_API_SSL_CERT_FILE: expected a file with a CA's certificate, found {plan}"),
        ({"PREFECT_HOME": profile(tmp_path / "home")}, "the Prefect profile 'rangers' names no server and allows no embedded one"),
    ]
    for variables, said in settings:
        done = run_command("rollback", plan, ANIML_STORE=str(tmp_path / "store"), **variables)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith(f"animl-pipeline: {said}")
    assert server(tmp_path, **settings[0][0]).startswith(f"ERROR {settings[0][1]}")


def authority(folder: Path) -> tuple[Path, Path]:
    """A CA that only its file knows, and a certificate of it for 127.0.0.1 with its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)

    def certificate(name: str, public: ec.EllipticCurvePublicKey, extension: x509.ExtensionType) -> x509.Certificate:
        subject, issuer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in (name, "the island's CA"))
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public).serial_number(x509.random_serial_number())
        dated = made.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
        known = dated.add_extension(extension, critical=False)
        known = known.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        return known.sign(key, hashes.SHA256())

    of_server = ec.generate_private_key(ec.SECP256R1())
    (folder / "ca.pem").write_bytes(
        certificate("the island's CA", key.public_key(), x509.BasicConstraints(ca=True, path_length=None)).public_bytes(serialization.Encoding.PEM)
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    plain = of_server.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(plain + certificate("server", of_server.public_key(), names).public_bytes(serialization.Encoding.PEM))
    return folder / "ca.pem", folder / "server.pem"


@contextmanager
def behind_tls(certificate: Path, shut_but_for: str = "") -> Iterator[str]:
    """The address of a server that answers as Prefect's does when it is asked whether it is well, over https."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, b"true") if self.path == "/api/health" else self._answer(422, b'{"detail": "CSRF protection is disabled."}')

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            let_in = not shut_but_for or self.headers.get("Authorization") == shut_but_for
            self._answer(200, b"0") if let_in else self._answer(401, b'{"exception_message": "Unauthorized"}')

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Print nothing about clients that do not trust the certificate."""

    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}/api"
    finally:
        server.shutdown()
        server.server_close()


def test_a_private_ca_in_prefects_settings_is_trusted_and_another_is_not(tmp_path: Path) -> None:
    ca, certificate = authority(tmp_path)
    with behind_tls(certificate) as address:
        trusted = server_by_settings(PREFECT_API_URL=address, PREFECT_API_SSL_CERT_FILE=str(ca))
        unknown = server_by_settings(PREFECT_API_URL=address)
    assert trusted == f"ok {address}"
    assert unknown.startswith(f"ERROR expected a Prefect server at {address} (PREFECT_API_URL), reached none (")
    assert unknown.endswith("; its certificate is not trusted: set PREFECT_API_SSL_CERT_FILE to a file with its CA's certificate")


def test_a_wrong_password_is_found_although_the_health_check_is_public(tmp_path: Path) -> None:
    ca, certificate = authority(tmp_path)
    with behind_tls(certificate, shut_but_for="Basic cmFuZ2VyOm93bA==") as address:
        where = {"PREFECT_API_URL": address, "PREFECT_API_SSL_CERT_FILE": str(ca)}
        assert server_by_settings(**where, PREFECT_API_AUTH_STRING="ranger:owl") == f"ok {address}"
        refused = server_by_settings(**where, PREFECT_API_AUTH_STRING="ranger:hawk")
    assert refused.startswith(f"ERROR the Prefect server at {address} asks for a password, and did not accept ours (401)")
    assert "hawk" not in refused


def test_an_empty_server_address_means_no_server(tmp_path: Path) -> None:
    assert server(tmp_path, PREFECT_API_URL="", PREFECT_HOME=str(tmp_path / "home")).startswith("note no PREFECT_API_URL: an embedded")
    done = run_command("notify", "sample", PREFECT_API_URL="", PREFECT_HOME=str(tmp_path / "home"))
    assert done.stderr.strip().endswith("PREFECT_API_URL: expected the address of a Prefect server, such as http://127.0.0.1:4200/api, found none")
