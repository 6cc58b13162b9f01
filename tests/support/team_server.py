"""A team's server as processes of this machine: Postgres, Prefect's server and workers, with the settings of docker/compose.yaml."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import requests
import yaml

from tests.support.command_line import COMMAND
from tests.support.endpoint_process import wait_until
from tests.support.paths import ROOT

COMPOSE = ROOT / "docker" / "compose.yaml"
EXAMPLE = ROOT / "docker" / "team.env.example"
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?:(?P<sign>:[-?])(?P<rest>[^}]*))?\}")
AUTH = ("team", "the owl flies at night")


def postgres_tools() -> Path | None:
    """The folder of Postgres' programs, from Debian or PATH; None if there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(p) for p in [shutil.which("initdb")] if p]
    return found[-1].parent if found else None


def read_env_file(file: Path) -> dict[str, str]:
    """The variables that an env file sets."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def compose_services(variables: Mapping[str, str]) -> dict[str, Any]:
    """The compose file's services, with its ``${…}`` resolved as compose does.

    Raises:
        KeyError: a variable that must be set is not.
    """

    def value(found: re.Match[str]) -> str:
        name, sign, rest = found["name"], found["sign"], found["rest"] or ""
        if variables.get(name):
            return variables[name]
        if sign == ":?":
            raise KeyError(rest)
        return rest

    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: filled(of) for key, of in node.items()}
        if isinstance(node, list):
            return [filled(of) for of in node]
        return VARIABLE.sub(value, node) if isinstance(node, str) else node

    found: dict[str, Any] = filled(yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"])
    return found


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Postgres:
    """A database cluster of its own, reached over TCP with a password, as in the compose file."""

    def __init__(self, tools: Path, password: str) -> None:
        self.tools = tools
        self.port = free_port()
        self.environment = os.environ | {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": "prefect", "PGPASSWORD": password}
        self.folder = Path(tempfile.mkdtemp(prefix="animl-postgres-"))  # not below pytest's folder, which Postgres' user may not enter
        self._user: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        (self.folder / "password").write_text(password)
        if self._user:
            for path in (self.folder, self.folder / "password"):
                shutil.chown(path, "postgres", "postgres")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Up while the block runs; then all of it is removed."""
        data, password = self.folder / "data", self.folder / "password"
        secure = ["--username", "prefect", "--pwfile", str(password), "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"]
        self._run("initdb", "--pgdata", str(data), *secure, **self._user)
        server = self._start(data)
        try:
            wait_until(lambda: self._ready() or server.poll() is not None, "Postgres answers")
            assert server.poll() is None, (self.folder / "log").read_text()
            self._run("createdb", "prefect")
            yield
        finally:
            server.send_signal(signal.SIGINT)  # the fast way down
            server.wait(timeout=60)
            shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, data: Path) -> subprocess.Popen[bytes]:
        command = [str(self.tools / "postgres"), "-D", str(data), "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder)]
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, **self._user)

    def _ready(self) -> bool:
        return subprocess.run([self.tools / "pg_isready", "-q"], env=self.environment, check=False).returncode == 0

    def back_up(self) -> str:
        """A dump, made as docs/operate.md says."""
        return self._run("pg_dump", "--no-owner", "prefect")

    def restore(self, kept: str) -> None:
        """Read a dump into a new database, after the old one is lost."""
        self._run("dropdb", "prefect")
        self._run("createdb", "prefect")
        self._run("psql", "--quiet", "--set", "ON_ERROR_STOP=1", "prefect", given=kept)

    def _run(self, tool: str, *arguments: str, given: str | None = None, **more: Any) -> str:
        done = subprocess.run(
            [self.tools / tool, *arguments], input=given, capture_output=True, text=True, env=self.environment, cwd=self.folder, check=False, **more
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


class Team:
    """The compose file's services as processes; ``extra`` is further environment of the workers, whose cache is this user's own."""

    def __init__(self, folder: Path, tools: Path, **extra: str) -> None:
        self.folder, self.extra = folder, extra
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}/api"
        chosen = {"PREFECT_AUTH": ":".join(AUTH), "POSTGRES_PASSWORD": "a1b2c3", "ANIML_STORE": str(folder / "store")}
        self.services = compose_services(read_env_file(EXAMPLE) | chosen | {"PUBLIC_URL": f"http://127.0.0.1:{self.port}", "ANIML_API_URL": ""})
        self.database = Postgres(tools, chosen["POSTGRES_PASSWORD"])
        self.servers: list[subprocess.Popen[bytes]] = []
        self._running = ExitStack()
        self._logs = 0

    def environment(self, service: str) -> dict[str, str]:
        """A service's environment, its hosts and folders led to this machine's."""
        here = {"server:4200": f"127.0.0.1:{self.port}", "database:5432": f"127.0.0.1:{self.database.port}"}
        settings = {
            name: "~/.cache/animl-pipeline" if value == "/cache" else str(value) for name, value in self.services[service]["environment"].items()
        }
        for there, instead in here.items():
            settings = {name: value.replace(there, instead) for name, value in settings.items()}
        ours = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "ANIML_", "AWS_"))}
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
        return ours | settings | {"PATH": path, "PREFECT_HOME": str(self.folder / f"home-{service}"), "OMP_NUM_THREADS": "1"} | self.extra

    def start(self, service: str) -> subprocess.Popen[bytes]:
        """A service's command as a process in a group of its own."""
        here = {"4200": str(self.port), "0.0.0.0": "127.0.0.1"}
        command = [here.get(word, word) for word in self.services[service]["command"]]
        self._logs += 1
        with (self.folder / f"{service}-{self._logs}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment(service),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running.callback(stop, process)
        return process

    def start_server(self) -> subprocess.Popen[bytes]:
        """Prefect's server, once it answers."""
        server = self.start("server")
        self.servers.append(server)
        wait_until(lambda: server.poll() is not None or self.answers(), "Prefect's server answers", seconds=300)
        assert server.poll() is None, self.logs("server")
        return server

    def answers(self) -> bool:
        """Whether the compose file's health check succeeds."""
        try:
            return requests.get(f"{self.address}/health", timeout=5).ok
        except requests.RequestException:
            return False

    def logs(self, service: str) -> str:
        """All that a service's processes logged."""
        return "\n".join(log.read_text(errors="replace") for log in sorted(self.folder.glob(f"{service}-*.log")))

    def ask(self, path: str, body: object = None, auth: tuple[str, str] | None = AUTH) -> requests.Response:
        """The API's answer: of a POST where there is a body, else of a GET."""
        method = "GET" if body is None else "POST"
        return requests.request(method, f"{self.address}/{path}", json=body, auth=auth, timeout=60)

    def call(self, path: str, body: object = None) -> Any:
        """The data of the API's answer, which must be a success."""
        answer = self.ask(path, body)
        assert answer.ok, f"{answer.status_code} {answer.text[:500]}"
        return answer.json()

    def close(self) -> None:
        """End what still runs."""
        self._running.close()


def start_up(folder: Path, port: int, environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], str]:
    """`animl-pipeline up`, once it runs, and its password (user:password) from the file that it names. Its output is in ``up.log``."""
    log = folder / "up.log"
    with log.open("wb") as out:
        command = [*COMMAND, "up", "--port", str(port), "--reports-port", str(free_port())]
        up = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    wait_until(lambda: "running until Ctrl-C" in log.read_text() or up.poll() is not None, "the server is up", seconds=300)
    assert up.poll() is None, log.read_text()
    named = re.search(r"^the password that it asks for: in (.+)$", log.read_text(), re.MULTILINE)
    assert named is not None, log.read_text()
    return up, Path(named[1]).read_text(encoding="utf-8").strip()


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process, gently first, then its whole group."""
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        pass
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """``kill -9`` of a process and all that it has started in its group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()
