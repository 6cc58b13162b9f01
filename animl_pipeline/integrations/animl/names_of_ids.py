"""The names behind the ids of a project's labels, tags and camera deployments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class ProjectNames(NamedTuple):
    """Id → name. A camera's deployment without a name of its own is ``<camera>-default``, as in exports."""

    labels: dict[str, str]
    tags: dict[str, str]
    deployments: dict[str, str]

    @classmethod
    def parse(cls, project: Mapping[str, Any]) -> ProjectNames:
        """The names in Animl's document of a project."""
        labels, tags = ({str(o["_id"]): str(o["name"]) for o in project.get(kind) or []} for kind in ("labels", "tags"))
        deployments = {
            str(d["_id"]): f"{camera['_id']}-default" if d["name"] == "default" else str(d["name"])
            for camera in project.get("cameraConfigs") or []
            for d in camera.get("deployments") or []
        }
        return cls(labels, tags, deployments)
