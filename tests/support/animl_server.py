"""An HTTP server that behaves like Animl's GraphQL API, with an attribute for each fault.

URLs, filters, task states, expiring addresses and files that are cut off follow Animl's API. graphql-core executes the queries
against Animl's own type names, so a query that Animl would refuse is refused here.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from graphql import GraphQLError, build_schema, graphql_sync

SCHEMA = build_schema("""
scalar Date
scalar JSONObject
enum Format { csv coco }
input FiltersInput {
  createdStart: Date  createdEnd: Date  addedStart: Date  addedEnd: Date
  cameras: [String!]  deployments: [String!]  labels: [String]  tags: [String]  reviewed: Boolean  custom: String
}
input ExportInput { format: Format!  timezone: String!  filters: FiltersInput!  onlyIncludeReviewed: Boolean!  aggregateObjects: Boolean! }
input QueryTaskInput { taskId: ID! }
input QueryImagesCountInput { filters: FiltersInput! }
input QueryProjectsInput { _ids: [String!] }
input QueryImagesInput {
  paginatedField: String  sortAscending: Boolean  limit: Int  next: String  previous: String  filters: FiltersInput!
}
type Validation { validated: Boolean!  validationDate: Date  userId: String }
type Label {
  _id: ID!  type: String!  labelId: String!  conf: Float  bbox: [Float!]  labeledDate: Date  mlModel: String  mlModelVersion: String
  userId: String  validation: Validation
}
type ImageObject { _id: ID!  bbox: [Float!]  locked: Boolean!  labels: [Label!] }
type ImageAddress { original: String  medium: String  small: String }
type Image {
  _id: ID!  projectId: String!  cameraId: String!  deploymentId: ID!  dateAdded: Date!  dateTimeAdjusted: Date  timezone: String!
  reviewed: Boolean  awaitingPrediction: Boolean  tags: [ID!]  url: ImageAddress  objects: [ImageObject!]
}
type ProjectLabel { _id: String!  name: String!  taxonomy: String  ml: Boolean }
type ProjectTag { _id: ID!  name: String!  color: String! }
input CreateProjectTagInput { name: String!  color: String! }
type ProjectTagsPayload { tags: [ProjectTag!] }
input ImageTagInput { imageId: ID!  tagId: ID! }
input CreateImageTagsInput { tags: [ImageTagInput!]! }
input CreateInternalLabelInput { labelId: String!  conf: Float!  bbox: [Float!]!  mlModel: String!  mlModelVersion: String! }
input CreateInternalLabelsInput { imageId: ID!  labels: [CreateInternalLabelInput!]! }
type StandardPayload { isOk: Boolean! }
type PageInfo { previous: String  hasPrevious: Boolean  next: String  hasNext: Boolean }
type ImagesConnection { images: [Image!]!  pageInfo: PageInfo }
type Point { type: String!  coordinates: [Float!]! }
type Location { _id: ID!  geometry: Point!  name: String }
type Deployment { _id: ID!  name: String!  timezone: String!  startDate: Date  location: Location }
type CameraConfig { _id: String!  deployments: [Deployment!]! }
type AutomationEvent { type: String!  label: String }
type AutomationAction {
  type: String!  alertRecipients: [String!]  mlModel: String  country: String  admin1Region: String
  confThreshold: Float  categoryConfig: JSONObject
}
type AutomationRule { _id: ID!  name: String!  event: AutomationEvent!  action: AutomationAction! }
input AutomationEventInput { type: String!  label: String }
input AutomationActionInput {
  type: String!  mlModel: String  country: String  admin1Region: String  alertRecipients: [String!]
  confThreshold: Float  categoryConfig: JSONObject
}
input AutomationRuleInput { _id: ID  name: String!  event: AutomationEventInput!  action: AutomationActionInput! }
input UpdateAutomationRulesInput { automationRules: [AutomationRuleInput!]! }
type UpdateAutomationRulesPayload { automationRules: [AutomationRule!] }
input QueryMLModelsInput { _ids: [String!] }
type Category { _id: String!  name: String!  color: String!  taxonomy: String }
type MLModel {
  _id: String!  description: String  version: String!  defaultConfThreshold: Float  categories: [Category!]!  expectsCrops: Boolean!
}
type Mutation {
  updateAutomationRules(input: UpdateAutomationRulesInput!): UpdateAutomationRulesPayload
  createProjectTag(input: CreateProjectTagInput!): ProjectTagsPayload
  createImageTags(input: CreateImageTagsInput!): StandardPayload
  createInternalLabels(input: CreateInternalLabelsInput!): StandardPayload
}
type Project {
  _id: String!  name: String!  cameraConfigs: [CameraConfig]  automationRules: [AutomationRule]  labels: [ProjectLabel!]  tags: [ProjectTag!]
}
type Task { _id: ID!  projectId: String!  type: String!  status: String!  created: Date!  updated: Date!  output: JSONObject }
type ImagesCount { count: Int }
type Query {
  exportAnnotations(input: ExportInput!): Task
  task(input: QueryTaskInput!): Task
  imagesCount(input: QueryImagesCountInput!): ImagesCount
  images(input: QueryImagesInput!): ImagesConnection
  projects(input: QueryProjectsInput): [Project]
  mlModels(input: QueryMLModelsInput): [MLModel!]
}
""")
assert SCHEMA.query_type is not None
SCHEMA.query_type.fields["images"].resolve = lambda site, info, input: site.images_on_page(info, input)  # ``site.images`` is the data
CONDITION = re.compile(r"'([\w.]+)': \{ (?:\$gte: ISODate\('([^']+)'\)|\$in: (\[[^\]]*\])) \}")
ISO_DATE = re.compile(r"\d\d|\d{4}|\d{4}-\d\d|\d{4}-?\d\d-?\d\d|\d{4}-?\d{3}|\d{4}-?W\d\d|\d\d:\d\d(:\d\d)?")
"""Texts that the library of Animl's task handler reads as dates. The handler turns them into dates, which no id equals."""
PAGE = 50
"""Images on a page of ``images``, at most."""
MAX_TAGGED = 20_000
"""Tags that one request may give to images."""
DAY = datetime(2026, 3, 1, tzinfo=UTC)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass
class AnimlLabel:
    """A label of an object: by a model (with its version and confidence), or by a person. ``validated``: None where that is not decided."""

    name: str
    model: str | None = None
    version: str | None = None
    conf: float | None = None
    validated: bool | None = None
    date: datetime | None = None  # of the validation
    labelled: datetime | None = None


@dataclass
class AnimlObject:
    """An object of an image, with one label as exports know it, or with all ``labels`` as ``images`` shows them."""

    id: str
    name: str = "fox"
    bbox: tuple[int, int, int, int] = (4, 4, 20, 20)  # left, top, width, height in pixels
    confidence: float | None = None
    validated: bool = True
    by: str = "reviewer"
    date: datetime | None = LONG_AGO
    labels: list[AnimlLabel] = field(default_factory=list)  # the one that was given last first, as Animl keeps them
    locked: bool | None = None  # None: as validated

    def all_labels(self) -> list[AnimlLabel]:
        return self.labels or [AnimlLabel(self.name, conf=self.confidence, validated=self.validated or None, date=self.date)]

    def is_locked(self) -> bool:
        return self.validated if self.locked is None else self.locked


@dataclass
class AnimlImage:
    """An image in Animl's database."""

    id: str
    project: str = "isle"
    camera: str = "cam1"
    deployment: str = "Cove"
    taken: datetime | None = DAY
    objects: list[AnimlObject] = field(default_factory=list)
    width: int = 64
    height: int = 48
    size_known: bool = True  # otherwise exports hold no size, and boxes of null
    added: datetime = LONG_AGO
    timezone: str = "UTC"
    tags: list[str] = field(default_factory=list)  # ids
    reopened: bool = False  # a label of a model came after the review

    @property
    def reviewed(self) -> bool:
        return not self.reopened and bool(self.objects) and all(t.is_locked() for t in self.objects)

    def validated_dates(self) -> list[datetime]:
        return [label.date for t in self.objects for label in t.all_labels() if label.date is not None and label.validated is not None]


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
        in_time = self.select({k: v for k, v in filters.items() if k.startswith("created")}, info.context["project"])
        if len(in_time) * self.count_seconds_per_image > self.api_timeout_s:
            raise _SlowError
        return {"count": len(self.select(filters, info.context["project"]))}

    def images_on_page(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:
        """A page of images with all their objects and labels. Boxes are relative to the image."""
        self.request_counts["images"] += 1
        found, start = self.select(input["filters"], info.context["project"]), int(input.get("next") or 0)
        end = start + min(input.get("limit") or PAGE, PAGE)
        if min(input.get("limit") or PAGE, PAGE) * self.page_seconds_per_image > self.api_timeout_s:
            raise _SlowError
        more = {"hasNext": end < len(found), "next": str(end) if end < len(found) else None}
        return {"images": [_document(p) for p in found[start:end]], "pageInfo": more | {"hasPrevious": start > 0, "previous": None}}

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
        found = next((t for t in image.objects if _relative_box(t, image) == box), None)
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
        stuck = stuck or (self.never_finish_above is not None and len(self.select(task.input["filters"], task.project)) > self.never_finish_above)
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
        about["labels"] = [{"_id": _label_id(name), "name": name, "ml": True} for name in names]
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

    def select(self, filters: dict[str, Any], project: str | None) -> list[AnimlImage]:
        """The images that fit the filters, in order of time."""
        start, end = (_parse_time(filters.get(k)) for k in ("createdStart", "createdEnd"))
        custom = _parse_custom(filters.get("custom"))
        since = _parse_time(custom.pop("objects.labels.validation.validationDate", None))
        added = _parse_time(filters.get("addedStart"))

        def fits(p: AnimlImage) -> bool:
            return (
                (project is None or p.project == project)
                and (start is None or (p.taken is not None and p.taken >= start))
                and (end is None or (p.taken is not None and p.taken < end))
                and ("cameras" not in filters or p.camera in filters["cameras"])
                and ("deployments" not in filters or p.deployment in filters["deployments"])
                and ("labels" not in filters or any(t.name in filters["labels"] for t in p.objects))
                and ("reviewed" not in filters or p.reviewed == filters["reviewed"])
                and (since is None or any(date >= since for date in p.validated_dates()))
                and (added is None or p.added >= added)
                and ("tags" not in filters or bool(set(p.tags) & set(filters["tags"])))
                and all(values(p) & set(custom[name]) for name, values in CUSTOM_FIELDS.items() if name in custom)
            )

        return sorted((p for p in self.images if fits(p)), key=lambda p: (p.taken or DAY, p.id))

    def _task_fields(self, task_id: str) -> dict[str, Any]:
        task = self.tasks[task_id]
        status = "SUBMITTED" if task.polls < 2 else "RUNNING"
        if task.output is not None:
            status = "FAIL" if task.failed else "COMPLETE"
        now = datetime.now(UTC).isoformat()
        times = {"created": now, "updated": now}
        return {"_id": task_id, "projectId": task.project, "type": "ExportAnnotations", "status": status, "output": task.output} | times

    def _finish(self, task_id: str, task: Task) -> None:
        filters = _with_dates(task.input["filters"]) | ({"reviewed": True} if task.input["onlyIncludeReviewed"] else {})
        images = [p for p in self.select(filters, task.project) if p.id not in self.hidden_from_exports]
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
        images = [_image(p) for p in exported]
        objects = [[_annotation(t, p, number) for t in p.objects] for p in exported]
        if count <= self.stream_above:
            whole = {"images": images, "annotations": [o for part in objects for o in part], "categories": categories, "info": info}
            return json.dumps(whole, indent=4).encode()
        text = '{"images": [' + "".join(json.dumps(im) + ("" if i == count else ", ") for i, im in enumerate(images, 1)) + '], "annotations": ['
        for i, part in enumerate(objects, 1):
            for k, o in enumerate(part, 1):
                last = i == count and k == len(part)
                text += json.dumps(o) + (f'], "categories": {json.dumps(categories)}, "info":{json.dumps(info)}}}' if last else ", ")
        return text.encode()


def _document(p: AnimlImage) -> dict[str, Any]:
    """An image as ``images`` answers it."""
    objects = [
        {"_id": t.id, "bbox": _relative_box(t, p), "locked": t.is_locked(), "labels": [_label(t, i) for i in range(len(t.all_labels()))]}
        for t in p.objects
    ]
    about = {"_id": p.id, "projectId": p.project, "cameraId": p.camera, "deploymentId": f"{p.camera}/{p.deployment}", "reviewed": p.reviewed}
    times = {"dateAdded": p.added.isoformat(), "dateTimeAdjusted": p.taken.isoformat() if p.taken else None, "timezone": p.timezone}
    return about | times | {"awaitingPrediction": False, "tags": p.tags, "objects": objects}


def _label(t: AnimlObject, number: int) -> dict[str, Any]:
    label = t.all_labels()[number]
    decided = {"validated": label.validated, "validationDate": label.date.isoformat() if label.date else None, "userId": t.by}
    return {
        "_id": f"{t.id}-{number}",
        "type": "ml" if label.model else "manual",
        "labelId": _label_id(label.name),
        "conf": label.conf,
        "labeledDate": label.labelled.isoformat() if label.labelled else None,
        "mlModel": label.model,
        "mlModelVersion": label.version,
        "validation": None if label.validated is None else decided,
    }


def _label_id(name: str) -> str:
    """A project's id of a label, which is not its name."""
    return f"id-of-{name}"


class _SlowError(Exception):
    """A query that takes longer than the API's limit."""


def _require_member(info: Any) -> str:
    """The current project, of which the user is a member."""
    project, members = info.context["project"], info.context["member_of"]
    if project is None or project not in members:
        raise GraphQLError("Forbidden", extensions={"code": "FORBIDDEN"})
    return str(project)


def _with_dates(filters: dict[str, Any]) -> dict[str, Any]:
    """Filters as the task handler reads them: an id that reads as a date has become one, and equals nothing."""
    return {name: [None if ISO_DATE.fullmatch(v) else v for v in value] if isinstance(value, list) else value for name, value in filters.items()}


CUSTOM_FIELDS: dict[str, Any] = {
    "_id": lambda p: {p.id},
    "cameraId": lambda p: {p.camera},
    "queryableLabelIds": lambda p: {t.name for t in p.objects},
}
"""Field of a MongoDB filter → its values for an image."""


def _parse_custom(text: str | None) -> dict[str, Any]:
    """The conditions of a filter ``custom``, by field: a time, or a list of texts."""
    found = {match[1]: match[2] or json.loads(match[3]) for match in CONDITION.finditer(text or "")}
    rest = CONDITION.sub("", text or "{}")
    if rest.strip("{}, ") or not found.keys() <= {*CUSTOM_FIELDS, "objects.labels.validation.validationDate"}:
        raise GraphQLError(f"not a filter: {text}")
    return found


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


def _parse_time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _image(p: AnimlImage) -> dict[str, Any]:
    name = f"{p.camera}-default" if p.deployment == "default" else p.deployment
    file_name = f"{p.project}/{p.camera}/{p.deployment.lower()}/{p.id.replace(':', '-')}.jpg"
    row = {"id": p.id, "file_name": file_name, "serving_bucket_key": f"original/{p.id}-original.jpg", "location": name}
    size = {"width": p.width, "height": p.height} if p.size_known else {}
    return row | {"datetime": p.taken.isoformat() if p.taken else None} | size


def _relative_box(t: AnimlObject, p: AnimlImage) -> list[float]:
    """The box as [ymin, xmin, ymax, xmax]."""
    x, y, w, h = t.bbox
    return [y / p.height, x / p.width, (y + h) / p.height, (x + w) / p.width]


def _annotation(t: AnimlObject, p: AnimlImage, number: dict[str, int]) -> dict[str, Any]:
    row = {"id": t.id, "image_id": p.id, "category_id": number[t.name], "sequence_level_annotation": False}
    row["bbox"] = list(t.bbox) if p.size_known else [None] * 4
    return row | {"confidence": t.confidence, "validated": t.validated, "validated_by": t.by}


def make_images(n: int, names: tuple[str, ...] = ("fox", "Rat"), start: datetime = DAY, step: timedelta = timedelta(hours=1)) -> list[AnimlImage]:
    """``n`` reviewed images, one an hour, with two labels at three cameras."""
    return [
        AnimlImage(
            id=f"isle:{i:032x}",
            camera=f"cam{i % 3}",
            deployment=("Cove", "Ridge", "Dune")[i % 3],
            taken=start + i * step,
            objects=[AnimlObject(id=f"{i:024x}", name=names[i % len(names)])],
        )
        for i in range(n)
    ]


def images_from_coco(coco: dict[str, Any], project: str = "isle") -> list[AnimlImage]:
    """The images of a COCO for Camera Traps export."""
    names = {c["id"]: c["name"] for c in coco["categories"]}
    objects: dict[str, list[AnimlObject]] = {}
    for a in coco["annotations"]:
        obj = AnimlObject(a["id"], names[a["category_id"]], tuple(a["bbox"]), a["confidence"], a["validated"], a["validated_by"])
        objects.setdefault(a["image_id"], []).append(obj)
    images = []
    for row in coco["images"]:
        camera = row["file_name"].split("/")[1]
        name = "default" if row["location"].endswith("-default") else row["location"]
        p = AnimlImage(row["id"], project, camera, name, datetime.fromisoformat(row["datetime"]), objects.get(row["id"], []))
        images.append(replace(p, width=row["width"], height=row["height"]))
    return images


def camera_config(name: str, *deployments: tuple[str, str | None, float | None, float | None]) -> dict[str, Any]:
    """A camera config; a deployment is (name, start date, latitude, longitude)."""
    found = []
    for i, (label, start, lat, lon) in enumerate(deployments):
        location = None if lat is None else {"_id": f"l{i}", "name": label, "geometry": {"type": "Point", "coordinates": [lon, lat]}}
        found.append({"_id": f"d{i}", "name": label, "timezone": "UTC", "startDate": start, "location": location})
    return {"_id": name, "deployments": found}


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
