"""An HTTP server that behaves like Animl's GraphQL API, with an attribute for each fault.

URLs, filters, task states, expiring addresses and files that are cut off follow Animl's API. graphql-core executes the queries
against Animl's own type names, so a query that Animl would refuse is refused here.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from graphql import GraphQLError, graphql_sync

from tests.support.animl_answers import coco_annotation, coco_image, filters_of_exports, image_document, label_id, matching_images, relative_box
from tests.support.animl_images import AnimlImage, AnimlLabel, AnimlObject
from tests.support.animl_schema import SCHEMA

assert SCHEMA.query_type is not None
SCHEMA.query_type.fields["images"].resolve = lambda site, info, input: site.images_on_page(info, input)  # ``site.images`` is the data
PAGE = 50
"""Images on a page of ``images``, at most."""
MAX_TAGGED = 20_000
"""Tags that one request may give to images."""


@dataclass
class Task:
    project: str
    input: dict[str, Any]
    polls: int = 0
    output: dict[str, Any] | None = None
    failed: bool = False
    body: bytes = b""
    signature: str = ""
    fetched: int = 0


class AnimlServer:
    """The server's data, and the faults that a test switches on."""

    def __init__(self, images: list[AnimlImage]) -> None:
        self.images = images
        self.labels = ["fox", "Rat", "person"]
        self.cameras: list[dict[str, Any]] = []
        self.rules: list[dict[str, Any]] = []
        self.models: list[dict[str, Any]] = []
        self.tags: list[dict[str, str]] = []
        self.internal_labels: list[tuple[str, AnimlLabel]] = []  # all that createInternalLabels wrote, with the image's id; automation rules ran
        self.seconds_per_label = 0.0  # that createInternalLabels takes
        self.page_seconds_per_image = 0.0  # simulated; a page of images above api_timeout_s answers 504
        self.user_is_manager = True  # users may change automation rules
        self.concurrent_rule: dict[str, Any] | None = None  # somebody adds this rule while ours are written
        self.tokens: dict[str, set[str]] = {"token-of-a-service-user": {"isle"}}
        self.api_key = "an-api-key"
        self.polls_until_done = 2
        self.api_timeout_s = 30.0
        self.count_seconds_per_image = 0.0  # simulated; above api_timeout_s a count answers 504
        self.stream_above = 18_000
        self.vanishing_images = 0  # in so many exports an image disappears after the count
        self.count_error = 0  # added to the count of every export
        self.failing_images: set[str] = set()  # ids; an export with one of these images fails
        self.hidden_from_exports: set[str] = set()  # ids of images that are counted, but in no export
        self.fail_all_exports = False
        self.never_finish = False  # exports stay RUNNING
        self.never_finish_after: int | None = None  # the later exports stay RUNNING
        self.never_finish_above: int | None = None  # exports of more images die at Lambda's limit and stay RUNNING
        self.unknown_tasks: set[str] = set()  # Animl has forgotten these tasks
        self.expired_urls = 0  # so many downloads find an expired address
        self.new_url_on_poll = False  # polling again gives a new address
        self.truncated_downloads = 0  # so many downloads are cut off
        self.errors_503 = 0  # so many requests get 503
        self.errors_500: Any = None  # every request gets 500 with this body
        self.revoke_tokens_after: int | None = None  # after so many requests all tokens are refused
        self.next_answers: list[Any] = []  # answers to the next requests
        self.echo_secrets = False  # errors hold the Authorization header
        self.unavailable_after: int | None = None  # after so many exports every request gets 503
        self.tasks: dict[str, Task] = {}
        self.request_counts: Counter[str] = Counter()
        self.export_filters: list[dict[str, Any]] = []
        self.signatures: list[str] = []
        self.lock = threading.RLock()
        self.address = ""

    @property
    def url(self) -> str:
        return f"{self.address}/external"

    # -- GraphQL resolvers, called by graphql-core ---------------------------------------------------------------------

    def imagesCount(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:  # noqa: N802 - Animl's own names
        """The number of images. Neither role nor membership is checked, and an unknown project has none."""
        self.request_counts["imagesCount"] += 1
        filters = input["filters"]
        in_time = matching_images(self.images, {k: v for k, v in filters.items() if k.startswith("created")}, info.context["project"])
        if len(in_time) * self.count_seconds_per_image > self.api_timeout_s:
            raise _SlowError
        return {"count": len(matching_images(self.images, filters, info.context["project"]))}

    def images_on_page(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:
        """A page of images with all their objects and labels. Boxes are relative to the image."""
        self.request_counts["images"] += 1
        found, start = matching_images(self.images, input["filters"], info.context["project"]), int(input.get("next") or 0)
        end = start + min(input.get("limit") or PAGE, PAGE)
        if min(input.get("limit") or PAGE, PAGE) * self.page_seconds_per_image > self.api_timeout_s:
            raise _SlowError
        more = {"hasNext": end < len(found), "next": str(end) if end < len(found) else None}
        return {"images": [image_document(p) for p in found[start:end]], "pageInfo": more | {"hasPrevious": start > 0, "previous": None}}

    def createProjectTag(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        _require_member(info)
        self.tags.append({"_id": f"tag-{len(self.tags)}", **input})
        return {"tags": self.tags}

    def createImageTags(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        project, by_id = _require_member(info), {p.id: p for p in self.images}
        if len(input["tags"]) > MAX_TAGGED or any(t["tagId"] not in {tag["_id"] for tag in self.tags} for t in input["tags"]):
            raise GraphQLError("Bad request", extensions={"code": "BAD_USER_INPUT"})
        for t in input["tags"]:
            if t["imageId"] in by_id and by_id[t["imageId"]].project == project and t["tagId"] not in by_id[t["imageId"]].tags:
                by_id[t["imageId"]].tags.append(t["tagId"])
        return {"isOk": True}

    def createInternalLabels(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        """Add a model's labels, one after the other: what came before an error stays. Nothing checks that the label is there already."""
        self.request_counts["createInternalLabels"] += 1
        if info.context["member_of"] is not None:
            raise GraphQLError("Forbidden", extensions={"code": "FORBIDDEN"})
        image = next((p for p in self.images if p.id == input["imageId"]), None)
        if image is None:
            raise GraphQLError("Image not found", extensions={"code": "NOT_FOUND"})
        for given in input["labels"]:
            model = next((m for m in self.models if m["_id"] == given["mlModel"]), None)
            if model is None:
                raise GraphQLError("MLModel not found", extensions={"code": "NOT_FOUND"})
            names = [c["name"] for c in model["categories"] if c["_id"] == given["labelId"]]
            if len(names) != 1:
                raise GraphQLError("a label of a category that the model does not have", extensions={"code": "DB_VALIDATION_ERROR"})
            name = next((label for label in self.labels if label.casefold() == names[0].casefold()), names[0])
            time.sleep(self.seconds_per_label)
            self._add_label(image, AnimlLabel(name, given["mlModel"], given["mlModelVersion"], given["conf"]), given["bbox"])
        return {"isOk": True}

    def _add_label(self, image: AnimlImage, label: AnimlLabel, box: list[float]) -> None:
        """Put a label in front of those of the object with exactly this box, or of a new object; the image is unreviewed again."""
        found = next((t for t in image.objects if relative_box(t, image) == box), None)
        if found is None:
            left, top = round(box[1] * image.width), round(box[0] * image.height)
            pixels = (left, top, round(box[3] * image.width) - left, round(box[2] * image.height) - top)
            found = AnimlObject(secrets.token_hex(12), bbox=pixels, labels=[label], locked=False)
            image.objects.insert(0, found)
        else:
            found.labels = [label, *found.all_labels()]
        image.reopened = True
        self.internal_labels.append((image.id, label))

    def exportAnnotations(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        project = _require_member(info)
        self.request_counts["exportAnnotations"] += 1
        self.export_filters.append(input["filters"])
        task_id = f"{len(self.tasks):024x}"
        self.tasks[task_id] = Task(project=project, input=input)
        return self._task_fields(task_id)

    def task(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:
        self.request_counts["task"] += 1
        task = self.tasks.get(input["taskId"])
        if task is None or input["taskId"] in self.unknown_tasks or task.project != _require_member(info):
            raise GraphQLError("Task not found", extensions={"code": "NOT_FOUND"})
        task.polls += 1
        stuck = self.never_finish or (self.never_finish_after is not None and int(input["taskId"], 16) >= self.never_finish_after)
        if self.never_finish_above is not None:
            stuck = stuck or len(matching_images(self.images, task.input["filters"], task.project)) > self.never_finish_above
        if not stuck and task.polls > self.polls_until_done and (task.output is None or self.new_url_on_poll):
            self._finish(input["taskId"], task)
        return self._task_fields(input["taskId"])

    def projects(self, info: Any, input: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        self.request_counts["projects"] += 1
        members = info.context["member_of"]
        mine = members if members is not None else {p.project for p in self.images}
        wanted = set(input["_ids"]) if input and input.get("_ids") else mine
        names = dict.fromkeys([*self.labels, *(label.name for p in self.images for t in p.objects for label in t.all_labels())])
        about = {"cameraConfigs": self._camera_configs(), "automationRules": self.rules, "tags": self.tags}
        about["labels"] = [{"_id": label_id(name), "name": name, "ml": True} for name in names]
        return [{"_id": p, "name": p} | about for p in sorted(mine & wanted)]

    def _camera_configs(self) -> list[dict[str, Any]]:
        """The cameras of the test, or else those that the images name."""
        if self.cameras:
            return self.cameras
        stood = {(p.camera, p.deployment) for p in self.images}
        return [
            {"_id": c, "deployments": [{"_id": f"{c}/{d}", "name": d, "timezone": "UTC"} for camera, d in sorted(stood) if camera == c]}
            for c in sorted({camera for camera, _ in stood})
        ]

    def mlModels(self, info: Any, input: dict[str, Any] | None = None) -> list[dict[str, Any]]:  # noqa: N802
        self.request_counts["mlModels"] += 1
        return [m for m in self.models if not input or input.get("_ids") is None or m["_id"] in input["_ids"]]

    def updateAutomationRules(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        """Replace all rules, as Animl does; its database adds an id to every entry of a categoryConfig."""
        _require_member(info)
        self.request_counts["updateAutomationRules"] += 1
        if not self.user_is_manager:
            raise GraphQLError("Forbidden", extensions={"code": "FORBIDDEN"})
        self.rules = [with_entry_ids(rule) for rule in [*input["automationRules"], *([self.concurrent_rule] if self.concurrent_rule else [])]]
        return {"automationRules": self.rules}

    # -- exports -----------------------------------------------------------------------------------------------------

    def _task_fields(self, task_id: str) -> dict[str, Any]:
        task = self.tasks[task_id]
        status = "SUBMITTED" if task.polls < 2 else "RUNNING"
        if task.output is not None:
            status = "FAIL" if task.failed else "COMPLETE"
        now = datetime.now(UTC).isoformat()
        times = {"created": now, "updated": now}
        return {"_id": task_id, "projectId": task.project, "type": "ExportAnnotations", "status": status, "output": task.output} | times

    def _finish(self, task_id: str, task: Task) -> None:
        filters = filters_of_exports(task.input["filters"]) | ({"reviewed": True} if task.input["onlyIncludeReviewed"] else {})
        images = [p for p in matching_images(self.images, filters, task.project) if p.id not in self.hidden_from_exports]
        count = len(images)
        if self.fail_all_exports or any(p.id in self.failing_images for p in images):
            task.failed, task.output = True, {"error": {"message": "Error exporting to COCO: could not find deployment", "extensions": {}}}
            return
        if self.vanishing_images and images:
            self.vanishing_images -= 1
            self.images.remove(images.pop())
        task.body = self._coco(task_id, images, count)
        task.signature = secrets.token_hex(16)
        self.signatures.append(task.signature)
        url = f"{self.address}/files/{task_id}_coco.json?X-Amz-Expires=3600&X-Amz-Signature={task.signature}"
        task.output = {"url": url, "count": count + self.count_error, "meta": {"reviewedCount": {"reviewed": count, "notReviewed": 0}}}

    def _coco(self, task_id: str, exported: list[AnimlImage], count: int) -> bytes:
        """The file. Above ``stream_above`` images it is streamed: its end is written with the last object of image number ``count``."""
        labels = self.labels[len(self.tasks) % len(self.labels) :] + self.labels[: len(self.tasks) % len(self.labels)]
        categories: list[dict[str, Any]] = [{"id": i, "name": n} for i, n in enumerate(["empty", *labels])]
        number = {c["name"]: c["id"] for c in categories}
        description = f"Image data exported from Animl project 'isle'. Export ID: {task_id}"
        info = {"version": "1.0", "description": description, "date_created": datetime.now(UTC).isoformat()}
        images = [coco_image(p) for p in exported]
        objects = [[coco_annotation(t, p, number) for t in p.objects] for p in exported]
        if count <= self.stream_above:
            whole = {"images": images, "annotations": [o for part in objects for o in part], "categories": categories, "info": info}
            return json.dumps(whole, indent=4).encode()
        text = '{"images": [' + "".join(json.dumps(im) + ("" if i == count else ", ") for i, im in enumerate(images, 1)) + '], "annotations": ['
        for i, part in enumerate(objects, 1):
            for k, o in enumerate(part, 1):
                last = i == count and k == len(part)
                text += json.dumps(o) + (f'], "categories": {json.dumps(categories)}, "info":{json.dumps(info)}}}' if last else ", ")
        return text.encode()


class _SlowError(Exception):
    """A query that takes longer than the API's limit."""


def _require_member(info: Any) -> str:
    """The current project, of which the user is a member."""
    project, members = info.context["project"], info.context["member_of"]
    if project is None or project not in members:
        raise GraphQLError("Forbidden", extensions={"code": "FORBIDDEN"})
    return str(project)


def with_entry_ids(rule: dict[str, Any]) -> dict[str, Any]:
    """A rule as MongoDB's library gives it back: each entry of its categoryConfig has an _id."""
    config = rule["action"].get("categoryConfig")
    if config is None:
        return rule
    entries = {name: {"_id": secrets.token_hex(12)} | {k: v for k, v in entry.items() if k != "_id"} for name, entry in config.items()}
    return rule | {"action": rule["action"] | {"categoryConfig": entries}}


def rule_made_in_animl(model: dict[str, Any], _id: str = "r9") -> dict[str, Any]:
    """An automation rule as Animl's web client makes it: every class has the model's default threshold."""
    entry = {"confThreshold": model["defaultConfThreshold"], "disabled": False}
    action = {"type": "run-inference", "mlModel": model["_id"], "categoryConfig": {c["name"]: entry for c in model["categories"]}}
    rule = {"_id": _id, "name": "made in Animl", "event": {"type": "label-added", "label": "animal"}, "action": action}
    return with_entry_ids(rule)


@contextmanager
def serve_animl(images: list[AnimlImage]) -> Iterator[AnimlServer]:
    """A running server, at ``site.url``, until the end of the block."""
    site = AnimlServer(images)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
    server.daemon_threads = True
    site.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(site: AnimlServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with site.lock:
                status, answer = self._answer(body)
            self._send(status, json.dumps(answer).encode())

        def _answer(self, body: bytes) -> tuple[int, Any]:
            site.request_counts["POST"] += 1
            if site.revoke_tokens_after is not None and site.request_counts["POST"] > site.revoke_tokens_after:
                site.tokens, site.revoke_tokens_after = {}, None
            if site.unavailable_after is not None and len(site.export_filters) >= site.unavailable_after:
                return 503, {"message": "Service Unavailable"}
            if site.errors_500 is not None:
                return 500, site.errors_500
            if site.errors_503:
                site.errors_503 -= 1
                return 503, {"message": "Service Unavailable"}
            if site.next_answers:
                return 200, site.next_answers.pop(0)
            if site.echo_secrets:
                return 200, {"errors": [{"message": f"boom: {self.headers['Authorization']}"}]}
            return self._route(json.loads(body))

        def _route(self, request: dict[str, Any]) -> tuple[int, Any]:
            if self.path == "/internal":
                if self.headers.get("x-api-key") != site.api_key:
                    return 403, {"message": "Forbidden"}
                return self._execute(request, None)
            if self.path != "/external":
                return 404, {"message": "Not Found"}
            projects = site.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
            if projects is None:
                return 401, {"message": "The incoming token has expired"}
            return self._execute(request, self.headers.get("x-selected-project"), projects)

        def _execute(self, request: dict[str, Any], project: str | None, member_of: set[str] | None = None) -> tuple[int, Any]:
            context = {"project": project, "member_of": member_of}
            result = graphql_sync(SCHEMA, request["query"], site, context, request.get("variables"))
            if any(isinstance(e.original_error, _SlowError) for e in result.errors or []):
                return 504, {"message": "Endpoint request timed out"}
            return (400 if result.data is None and result.errors else 200), result.formatted

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            task = site.tasks.get(parts.path.removeprefix("/files/").removesuffix("_coco.json"))
            signature = parse_qs(parts.query).get("X-Amz-Signature", [""])[0]
            site.request_counts["GET"] += 1
            if self.headers.get("Authorization"):
                self._send(400, b"<Code>InvalidArgument</Code>Only one auth mechanism allowed")
            elif task is None or signature != task.signature:
                self._send(403, b"<Code>SignatureDoesNotMatch</Code>")
            elif site.expired_urls:
                site.expired_urls -= 1
                self._send(403, b"<Code>AccessDenied</Code><Message>Request has expired</Message>")
            elif site.truncated_downloads:
                site.truncated_downloads -= 1
                self.send_response(200)
                self.send_header("Content-Length", str(len(task.body)))
                self.end_headers()
                self.wfile.write(task.body[: len(task.body) // 2])
                self.close_connection = True
            else:
                self._send(200, task.body)

        def _send(self, status: int, body: bytes) -> None:
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    return Handler
