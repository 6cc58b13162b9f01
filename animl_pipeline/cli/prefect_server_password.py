"""Passwords of the Prefect servers that this software starts: new ones, weak ones, and the file where this user's commands find one."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from animl_pipeline.core.errors import SettingsError
from animl_pipeline.core.refuse_foreign_requests import LOOPBACK

USER = "animl"
SHORTEST = 8
"""Characters that a password must have."""
PUBLISHED = frozenset({"change-me", "changeme", "changemetoo", "password", "your-password"})
"""Passwords that documents or examples have shown. Everybody knows them."""


def new_password() -> str:
    """A random password for one run of a server, as ``user:password``."""
    return f"{USER}:{secrets.token_urlsafe(24)}"


def check_password(auth: str, variable: str) -> str:
    """The password as it was given.

    ``auth``: ``user:password``. ``variable``: the environment variable that holds it, for the message; the message does not show the
    password.

    Raises:
        SettingsError: it has another form, is an example's, or is short.
    """
    user, colon, password = auth.partition(":")
    remedy = f'choose one of your own, such as {USER}:$(python3 -c "import secrets; print(secrets.token_urlsafe(24))")'
    if not user or not colon:
        raise SettingsError(f"{variable}: expected user:password, found {'nothing' if not auth else 'another form'}; {remedy}", code="password_form")
    if is_published(password):
        raise SettingsError(
            f"{variable}: expected a secret, found the password of an example, which everybody knows; {remedy}", code="example_password"
        )
    if len(password) < SHORTEST:
        raise SettingsError(f"{variable}: expected at least {SHORTEST} characters, found {len(password)}; {remedy}", code="short_password")
    return auth


def is_published(password: str) -> bool:
    """Whether an example or a document shows this password."""
    return password.lower() in PUBLISHED


def password_file(home: Path, port: int) -> Path:
    """Where `animl-pipeline up` keeps the password of its server on this port, while it runs.

    ``home``: PREFECT_HOME.
    """
    return home / f"animl-pipeline-up-{port}.password"


@contextmanager
def kept_in_file(auth: str, file: Path) -> Iterator[None]:
    """Keep the password in a file that only this user can read, while the block runs.

    Raises:
        SettingsError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)  # of a run that was killed; a new file gets this mode, an old one would keep its own
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
            opened.write(f"{auth}\n")
    except OSError as e:
        raise SettingsError(
            f"the server's password cannot be kept in {file} ({e.strerror}); set PREFECT_HOME to a folder that can be written", code="password_file"
        ) from e
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()


def kept_password(address: str, home: Path) -> str | None:
    """The password that `animl-pipeline up` of this user keeps for a server on this machine; None if there is none to be trusted.

    ``home``: PREFECT_HOME.
    """
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:  # no address
        return None
    if host not in LOOPBACK or port is None:
        return None
    try:
        with password_file(home, port).open(encoding="utf-8") as opened:
            found = os.fstat(opened.fileno())
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
                return None
            return opened.read().strip() or None
    except OSError:
        return None
