"""Decode and crop an image in a process of its own, which is stopped if it takes too long or too much memory.

A decoder cannot be interrupted inside of a thread. Images whose decoding has no small bound go this way: formats other than JPEG and
PNG, and large JPEGs of many scans. ``python -m animl_pipeline.serve.crop_process`` reads one JSON line and an image from standard
input. For each box it writes a JSON line and, unless the line has an error, the pixels of the crop.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import IO, Any

from PIL import Image

from animl_pipeline.core.box_type import Box
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import ImageError
from animl_pipeline.core.model_card import ModelInput
from animl_pipeline.core.model_input import extract_crop
from animl_pipeline.serve.http_errors import RequestError
from animl_pipeline.serve.limits import Deadline

DECODE_S = 20
"""Seconds of a processor for one image and its crops. The request's own deadline counts, too."""
PROCESS_BYTES = 60_000_000
"""Memory of the process without the image: Python and its modules take 46 MB, of which the endpoint shares a part."""


def crop_in_process(
    image: bytes, boxes: Sequence[Box], model_input: ModelInput, deadline: Deadline, *, formats: Sequence[str], memory: int, seconds: int = DECODE_S
) -> Generator[Image.Image, None, None]:
    """The crop of each box, in order, as :func:`extract_crop` returns it.

    ``deadline``: the request's; the process is stopped when it is over or cancelled. ``memory``: bytes that decoding and cropping may take.
    ``seconds``: time of a processor that it may take.

    Raises:
        RequestError: 400, the image cannot be decoded, or not within its time and memory; 499 or 503, the deadline's.
    """
    command = [sys.executable, "-m", "animl_pipeline.serve.crop_process"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    timer = threading.Timer(deadline.remaining(), process.kill)
    timer.daemon = True
    timer.start()
    with process, deadline.stopping(process.kill):
        try:
            header = {"bytes": len(image), "boxes": [box.as_list() for box in boxes], "input": model_input.model_dump()}
            _send(process, header | {"formats": formats, "memory": memory, "seconds": seconds}, image)
            for _ in boxes:
                crop = _receive(process, model_input.size)
                if crop is None:
                    deadline.check()
                    raise RequestError(400, f"image: {_reason(process.wait(), seconds)}; save it as a baseline JPEG, or make it smaller")
                yield crop
                deadline.check()
        finally:
            timer.cancel()
            process.kill()


def _reason(status: int, seconds: int) -> str:
    late = status in {-signal.SIGXCPU, -signal.SIGKILL}
    return f"decoding it took more than {seconds} s" if late else f"the process that decoded it ended with status {status}"


def _send(process: subprocess.Popen[bytes], header: dict[str, Any], image: bytes) -> None:
    if process.stdin is None:
        raise AssertionError
    try:
        process.stdin.write(json.dumps(header).encode() + b"\n")
        process.stdin.write(image)
        process.stdin.close()
    except BrokenPipeError:  # the process ended; its output says why, or has nothing
        with suppress(BrokenPipeError):  # what was not sent is flushed once more
            process.stdin.close()


def _receive(process: subprocess.Popen[bytes], size: int) -> Image.Image | None:
    """The next crop; None if the process ended before it.

    Raises:
        RequestError: 400, the process says why there is none.
    """
    if process.stdout is None:
        raise AssertionError
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        return None
    error = json.loads(line)["error"]
    if error is not None:
        raise RequestError(400, error)
    pixels = process.stdout.read(3 * size * size)
    return Image.frombytes("RGB", (size, size), pixels) if len(pixels) == 3 * size * size else None


def main() -> None:
    """Crop the image on standard input."""
    request = json.loads(sys.stdin.buffer.readline())
    limit = 2 * PROCESS_BYTES + int(1.25 * request["memory"])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (request["seconds"], request["seconds"] + 1))
    model_input = ModelInput.model_validate(request["input"])
    out = sys.stdout.buffer
    try:
        image = open_image(sys.stdin.buffer.read(request["bytes"]), request["formats"])
    except (Exception, MemoryError) as e:  # noqa: BLE001 - damaged bytes make decoders raise errors of many kinds
        _write(out, f"image: {e if isinstance(e, ImageError) else f'cannot be decoded: {type(e).__name__}'}")
        return
    for box in request["boxes"]:
        try:
            crop = extract_crop(image, Box.of(box), model_input)
        except (ImageError, MemoryError) as e:
            _write(out, f"bbox: {str(e) or type(e).__name__}")
            return
        _write(out, None)
        out.write(crop.tobytes())
    out.flush()


def _write(out: IO[bytes], error: str | None) -> None:
    out.write(json.dumps({"error": error}).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    main()
