"""Models, endpoint configs, endpoints and training jobs in one JSON file, so that a restarted server still knows them."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

from animl_pipeline.core.errors import StoreError
from animl_pipeline.dev.sagemaker_local.api_validation import arn, invalid
from animl_pipeline.storage.atomic_files import write_atomic

KINDS = {"model": "Model", "endpoint-config": "EndpointConfig", "endpoint": "Endpoint", "training-job": "TrainingJob"}
"""Kind in an ARN → the same kind in the name of an operation."""

Entry = dict[str, Any]


class StateFile:
    """Entries by kind and name, and tags by ARN. Every change is on the disk when the call returns.

    Hold ``lock`` to read and then write.
    """

    def __init__(self, folder: Path) -> None:
        self.lock = threading.RLock()
        self._path = folder / "state.json"
        self._all: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
        self._tags: dict[str, dict[str, str]] = {}
        self._read()

    def add(self, kind: str, name: str, entry: Entry, tags: list[dict[str, str]] | None = None) -> str:
        """Add an entry; returns its ARN.

        Raises:
            ApiError: the name exists already.
        """
        with self.lock:
            if name in self._all[kind]:
                raise invalid(f'Cannot create already existing {kind} "{arn(kind, name)}".')
            now = time.time()
            self._all[kind][name] = entry | {"CreationTime": now, "LastModifiedTime": now}
            self.tag(arn(kind, name), tags or [])
            return arn(kind, name)

    def get(self, kind: str, name: str) -> Entry:
        """A copy of an entry.

        Raises:
            ApiError: the name does not exist.
        """
        with self.lock:
            entry = self._all[kind].get(name)
            if entry is None:
                raise invalid(f'Could not find {kind.replace("-", " ")} "{arn(kind, name)}".')
            return dict(entry)

    def change(self, kind: str, name: str, **values: Any) -> None:
        """Set values of an entry; None removes a value. Does nothing if the entry was deleted meanwhile."""
        with self.lock:
            entry = self._all[kind].get(name)
            if entry is None:
                return
            entry |= values | {"LastModifiedTime": time.time()}
            self._all[kind][name] = {k: v for k, v in entry.items() if v is not None}
            self._write()

    def remove(self, kind: str, name: str) -> None:
        """Delete an entry and its tags.

        Raises:
            ApiError: the name does not exist.
        """
        with self.lock:
            self.get(kind, name)
            del self._all[kind][name]
            self._tags.pop(arn(kind, name), None)
            self._write()

    def entries(self, kind: str) -> dict[str, Entry]:
        """CheckpointSync of all entries of a kind by name, the oldest first."""
        with self.lock:
            return {n: dict(e) for n, e in sorted(self._all[kind].items(), key=lambda item: item[1]["CreationTime"])}

    def tag(self, resource: str, tags: list[dict[str, str]]) -> None:
        """Add tags to a resource."""
        with self.lock:
            self._tags.setdefault(resource, {}).update({t["Key"]: t["Value"] for t in tags})
            self._write()

    def tags(self, resource: str) -> list[dict[str, str]]:
        """A resource's tags."""
        with self.lock:
            return [{"Key": k, "Value": v} for k, v in self._tags.get(resource, {}).items()]

    def _read(self) -> None:
        if not self._path.exists():
            return
        try:
            known = json.loads(self._path.read_bytes())
            self._all, self._tags = self._all | known["entries"], known["tags"]
        except (ValueError, KeyError, TypeError) as e:
            raise StoreError(f"{self._path} is not the state of a local SageMaker; move it away or give another folder with --state") from e

    def _write(self) -> None:
        write_atomic(self._path, json.dumps({"entries": self._all, "tags": self._tags}, indent=1).encode())
