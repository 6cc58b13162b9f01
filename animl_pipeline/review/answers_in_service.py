"""What the model in service answered about the last images of a plan's Animl projects: boxes, labels, what people validated, and the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from animl_pipeline.config import Plan, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.category_names import is_person, is_vehicle
from animl_pipeline.core.table_schemas import EXPORT_IMAGES
from animl_pipeline.integrations.animl import AnimlClient
from animl_pipeline.integrations.animl.client import relative_box
from animl_pipeline.integrations.animl.errors_in_answers import animl_errors
from animl_pipeline.integrations.animl.queries import LABELS_WITH_BOXES
from animl_pipeline.review.candidates import Pool, download_pool, export_with_unreviewed
from animl_pipeline.review.score_images import BOX
from animl_pipeline.steps.monitor import ServedModel, ServiceLabels
from animl_pipeline.steps.monitor.label_rows import from_parquet, merge_rows, rows_of_images, to_parquet
from animl_pipeline.steps.monitor.service_outcomes import read_service_data
from animl_pipeline.storage.store import Store


class AnswersInService(NamedTuple):
    """Animals that a detector found, as the model in service answered them.

    Attributes:
        objects: a row for each with ``source, image_id, image`` (sha256)``, location, BOX, old`` (its labels by the model, the
            shown one first)``, truth`` (text; "" if people saw no animal or did not decide)``, decided, people`` (in the image).
        images: how many images were chosen.
        not_readable: how many of them could not be downloaded.
    """

    objects: pd.DataFrame
    images: int
    not_readable: int


def latest_images(labels: Sequence[ServiceLabels], model: ServedModel, count: int, store: Store) -> tuple[pd.DataFrame, int]:
    """``source, image_id`` of the last images with an animal that were added since the present version serves; and how many animals they have."""
    everything = pa.concat_tables([from_parquet(store.blob(part.blob)) for part in labels]).unify_dictionaries()
    data = read_service_data(everything, model, ())
    animals = data.objects.loc[data.objects["animal"], "image"].value_counts()
    images = data.images.loc[animals.index, ["source", "image_id", "added_s"]].astype({"source": str, "image_id": str}).assign(animals=animals)
    images = images[images["added_s"] >= model.served[-1][0]]
    chosen = images.sort_values(["added_s", "image_id"], ascending=[False, True], kind="stable").head(count)
    return chosen[["source", "image_id"]], int(chosen["animals"].sum())


def answers_in_service(plan: Plan, chosen: pd.DataFrame, model: ServedModel, store: Store, settings: Settings) -> AnswersInService:
    """The answers on some images.

    Animl is asked for these images now, because its labels may have changed since the monitor read them, and for their boxes. The images
    are downloaded as for a training.

    Args:
        plan: names the sources.
        chosen: ``source, image_id`` of the images.
        model: the model in service.
        store: keeps the images.
        settings: where they are, and Animl's address and user.

    Raises:
        ExportError, ExportUnreachableError: Animl refuses, or does not answer now.
        ImagesError, ImagesUnreachableError: the host of the images does not answer.
    """
    images = pd.concat([_add_paths(s, chosen[chosen["source"] == s.name], store, settings) for s in plan.sources], ignore_index=True)
    if images.empty:
        return AnswersInService(_objects({}, model).assign(image=""), len(chosen), len(chosen))
    pool = download_pool(Pool(images, np.zeros(len(images), bool), 0, 0), plan, store, settings)
    there = pool.images[pool.images["blob"] != ""].set_index(["source", "image_id"])["blob"]
    documents = {s.name: _ask(s, [image for source, image in there.index if source == s.name], settings) for s in plan.sources}
    objects = _objects({name: found for name, found in documents.items() if found is not None}, model)
    blobs = [there.get(key, "") for key in zip(objects["source"], objects["image_id"], strict=True)]
    return AnswersInService(objects.assign(image=blobs), len(chosen), len(chosen) - len(there))


def _add_paths(source: SourceConfig, chosen: pd.DataFrame, store: Store, settings: Settings) -> pd.DataFrame:
    """The images that the source's export names, with their paths."""
    if chosen.empty:
        return chosen.assign(path="")
    known = store.table(export_with_unreviewed(source, store, settings), EXPORT_IMAGES, ["image_id", "path"])
    return chosen.merge(known.drop_duplicates("image_id"), on="image_id")


class _Documents(NamedTuple):
    """Images as Animl answers them, their rows of SERVICE_LABELS, and which of them show people or vehicles."""

    images: list[dict[str, Any]]
    rows: pa.Table
    people: set[str]


def _ask(source: SourceConfig, image_ids: Sequence[str], settings: Settings) -> _Documents | None:
    project = source.project()
    if project is None or not image_ids:
        return None
    with animl_errors(source), AnimlClient(project, settings) as animl:
        names, images = animl.project_names(), list(animl.images_by_id(LABELS_WITH_BOXES, image_ids))
    hidden = {label for label, name in names.labels.items() if is_person(name) or is_vehicle(name)}
    people = {str(im["_id"]) for im in images if any(str(x["labelId"]) in hidden for o in im.get("objects") or [] for x in o.get("labels") or [])}
    return _Documents(images, rows_of_images(images, source.name, names, None), people)


def _objects(documents: Mapping[str, _Documents], model: ServedModel) -> pd.DataFrame:
    """The animals that a detector found, with their boxes, labels and truth."""
    columns = ["source", "image_id", "location", *BOX, "old", "truth", "decided", "people"]
    if not documents:
        return pd.DataFrame(columns=columns)
    data = read_service_data(from_parquet(to_parquet(merge_rows([d.rows for d in documents.values()]))), model, ())
    labels = data.answers.groupby("object")["class_number"].agg(lambda numbers: [model.classes[n] for n in dict.fromkeys(numbers)])
    of_image = data.images[["source", "image_id", "location"]].astype(str)
    objects = pd.concat([of_image.iloc[data.objects["image"]].reset_index(drop=True), data.objects], axis=1)
    objects = objects.assign(old=pd.Series([labels.get(i, []) for i in range(len(objects))], dtype=object), decided=objects["locked"])
    rows: list[tuple[Any, ...]] = [
        (source, str(image["_id"]), number, *np.clip(box, 0, 1), str(image["_id"]) in d.people)
        for source, d in documents.items()
        for image in d.images
        for number, obj in enumerate(image.get("objects") or [])
        if (box := relative_box(obj)) is not None
    ]
    boxes = pd.DataFrame(rows, columns=["source", "image_id", "number", *BOX, "people"])
    found = objects[objects["animal"]].merge(boxes, on=["source", "image_id", "number"])
    return found.loc[(found["ymax"] > found["ymin"]) & (found["xmax"] > found["xmin"]), columns].reset_index(drop=True)
