"""Run `animl-pipeline` in a terminal of a given width."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

from tests.support.command_line import COMMAND
from tests.support.paths import ROOT

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def run_in_terminal(columns: int, *arguments: str | Path, **variables: str) -> list[str]:
    """The lines that a person sees, without colours. The terminal itself wraps nothing."""
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES"}} | {"TERM": "xterm"} | variables
    with subprocess.Popen([*COMMAND, *map(str, arguments)], stdin=there, stdout=there, stderr=there, cwd=ROOT, env=environment) as command:
        os.close(there)
        shown = b""
        while chunk := _read(here):
            shown += chunk
        command.wait(120)
    os.close(here)
    return _CONTROL.sub("", shown.decode(errors="replace")).replace("\r", "").splitlines()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # EIO: the command has closed its side
        return b""
