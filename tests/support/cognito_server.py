"""The server's half of Amazon Cognito's sign-in by SRP, over HTTP: it checks a real proof of the password.

Written from the protocol: SRP-6a (RFC 5054) in the 3072-bit group of RFC 3526 with SHA-256, and Cognito's own key derivation
("Caldera Derived Key") and signature. It has one pool, one client and one user, and none of the limits of AWS.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import mpmath

USER_ID = "7f9d3c3e-service-user"


def group_prime() -> int:
    """The prime of RFC 3526's group 15: 2^3072 - 2^3008 - 1 + 2^64 (floor(2^2942 pi) + 1690314)."""
    with mpmath.workprec(3200):
        digits = int(mpmath.floor(mpmath.pi * mpmath.mpf(2) ** 2942))
    return int(2**3072 - 2**3008 - 1 + 2**64 * (digits + 1690314))


N, G = group_prime(), 2


def padded(value: int) -> bytes:
    """Big-endian, with a zero byte in front where the first bit is set."""
    data = value.to_bytes((value.bit_length() + 7) // 8 or 1, "big")
    return b"\0" + data if data[0] & 0x80 else data


def hashed(*parts: bytes) -> int:
    return int.from_bytes(hashlib.sha256(b"".join(parts)).digest(), "big")


class CognitoPool:
    """One pool with one client and one user."""

    def __init__(self, pool: str, client: str, user: str, password: str, issue: Callable[[], str]) -> None:
        self.pool, self.client, self.user, self.password, self.issue = pool, client, user, password, issue
        self.second_factor = False
        self.requests: list[dict[str, Any]] = []
        self.address = ""
        self._sessions: dict[str, tuple[int, int, int, int]] = {}

    def answer(self, target: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.requests.append(request)
        if request.get("ClientId") != self.client:
            return refused("ResourceNotFoundException")
        return self._begin(request) if target.endswith("InitiateAuth") else self._verify(request)

    def _begin(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        parameters = request["AuthParameters"]
        if request["AuthFlow"] != "USER_SRP_AUTH" or parameters["USERNAME"] != self.user:
            return refused("NotAuthorizedException")
        salt, b, block = secrets.randbits(128), secrets.randbits(1024), base64.b64encode(secrets.token_bytes(64)).decode()
        inner = hashlib.sha256(f"{self.pool.partition('_')[2]}{USER_ID}:{self.password}".encode()).digest()
        verifier = pow(G, hashed(padded(salt), inner), N)
        public = (hashed(padded(N), padded(G)) * verifier + pow(G, b, N)) % N
        self._sessions[block] = (int(parameters["SRP_A"], 16), verifier, b, public)
        challenge = {"SALT": f"{salt:x}", "SRP_B": f"{public:x}", "SECRET_BLOCK": block, "USERNAME": self.user, "USER_ID_FOR_SRP": USER_ID}
        return 200, {"ChallengeName": "PASSWORD_VERIFIER", "ChallengeParameters": challenge}

    def _verify(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        responses = request["ChallengeResponses"]
        block = responses["PASSWORD_CLAIM_SECRET_BLOCK"]
        client_public, verifier, b, public = self._sessions.pop(block)
        u = hashed(padded(client_public), padded(public))
        shared = pow(client_public * pow(verifier, u, N) % N, b, N)
        extracted = hmac.new(padded(u), padded(shared), hashlib.sha256).digest()
        key = hmac.new(extracted, b"Caldera Derived Key\x01", hashlib.sha256).digest()[:16]
        message = self.pool.partition("_")[2].encode() + USER_ID.encode() + base64.b64decode(block) + responses["TIMESTAMP"].encode()
        expected = base64.b64encode(hmac.new(key, message, hashlib.sha256).digest()).decode()
        if not hmac.compare_digest(expected, responses["PASSWORD_CLAIM_SIGNATURE"]):
            return refused("NotAuthorizedException")
        if self.second_factor:
            return 200, {"ChallengeName": "SOFTWARE_TOKEN_MFA", "Session": "s" * 32, "ChallengeParameters": {}}
        return 200, {"AuthenticationResult": {"IdToken": self.issue(), "AccessToken": "a", "ExpiresIn": 3600, "TokenType": "Bearer"}}


def refused(code: str) -> tuple[int, dict[str, Any]]:
    return 400, {"__type": code, "message": "refused"}


@contextmanager
def serve_cognito(cognito: CognitoPool) -> Iterator[CognitoPool]:
    """Cognito's API for one pool, until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = cognito.answer(self.headers["X-Amz-Target"], request)
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    cognito.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield cognito
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
