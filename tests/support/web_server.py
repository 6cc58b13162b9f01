"""A real HTTP server on this machine that serves bytes from memory, with a knob for each fault."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Site:
    """What the server holds and how it misbehaves."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: Counter[str] = Counter()
        self.fail_first: dict[str, int] = {}  # path → how many 503s before it is served
        self.status: dict[str, int] = {}  # path → this status, always
        self.cut: set[str] = set()  # paths whose body ends early, always
        self.wrong_first: dict[str, int] = {}  # path → how many times it is served with a wrong byte
        self.cut_first: dict[str, int] = {}  # path → how many times its body ends early
        self.hang_first: dict[str, int] = {}  # path → how many times there is no answer at all
        self.elsewhere: dict[str, str] = {}  # path → the path or address that it redirects to
        self.sent_slowly: set[str] = set()  # paths whose body comes a byte at a time
        self.slow_header: set[str] = set()  # paths whose header comes a byte at a time and never ends
        self.sent: Counter[str] = Counter()  # path → bytes of bodies sent
        self.headers: dict[str, dict[str, str]] = {}  # path → headers to send with it
        self.bodies: dict[str, bytes] = {}  # path → body to send with a status other than 200
        self.ended = threading.Event()
        self.said: defaultdict[str, set[str | None]] = defaultdict(set)  # header → what clients sent as it
        self.gate = threading.Event()  # requests past `gate_after` wait until it is set
        self.gate_after: int | None = None
        self.at_gate = threading.Event()
        self.address = ""


@contextmanager
def served(files: dict[str, bytes]) -> Iterator[Site]:
    site = Site(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(self.path.lstrip("/"))
            site.asked[path] += 1
            site.said["Authorization"].add(self.headers.get("Authorization"))
            if site.gate_after is not None and site.asked.total() > site.gate_after:
                site.at_gate.set()
                site.gate.wait(60)
            turn = site.asked[path]
            if turn <= site.hang_first.get(path, 0):
                site.ended.wait(60)
                self.close_connection = True
            elif turn <= site.fail_first.get(path, 0):
                self._answer(503, b"busy", site.headers.get(path, {}))
            elif path in site.status:
                self._answer(site.status[path], site.bodies.get(path, b""))
            elif path in site.elsewhere:
                there = site.elsewhere[path]
                self._answer(302, site.bodies.get(path, b""), {"Location": there if "://" in there else f"/{there}"})
            elif path in site.slow_header:
                self._send_slowly(b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 100_000)
            elif path not in site.files:
                self._answer(404, b"")
            elif path in site.cut or turn <= site.cut_first.get(path, 0):
                self.send_response(200)
                self.send_header("Content-Length", str(len(site.files[path])))
                self.end_headers()
                self.wfile.write(site.files[path][: len(site.files[path]) // 2])
                self.close_connection = True
            else:
                data = site.files[path]
                if turn <= site.wrong_first.get(path, 0):
                    data = data[:-9] + bytes([data[-9] ^ 1, turn % 256]) + data[-7:]
                self._answer(200, data, site.headers.get(path, {}))

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            try:
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                path = unquote(self.path.lstrip("/"))
                if path in site.sent_slowly:
                    self._send_slowly(body)
                for start in range(0, len(body), 1 << 16):
                    self.wfile.write(body[start : start + (1 << 16)])
                    site.sent[path] += len(body[start : start + (1 << 16)])
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client was killed, as some tests want

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.do_GET()

        def _send_slowly(self, data: bytes) -> None:
            for i in range(len(data)):
                if site.ended.wait(0.02):
                    return
                try:
                    self.wfile.write(data[i : i + 1])
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                    return

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.gate.set()
        site.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
