"""The step `test_downloads`: the images of one source on which the model is scored as in production.

They are known only after the split, so that empty images of training locations are never downloaded. An image that the step `images`
downloaded is not requested again.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from animl_pipeline.config import ImagesConfig, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.errors import ImagesUnreachableError, redact_url
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import DOWNLOADED_IMAGES, MISSING_IMAGES, TEST_IMAGES
from animl_pipeline.core.tables import write_table
from animl_pipeline.steps.images.download import open_image_host
from animl_pipeline.steps.images.files_changed_later import make_again_if_changed
from animl_pipeline.steps.images.step import download_all
from animl_pipeline.steps.images.wanted_images_and_estimate import host_address, local_folder
from animl_pipeline.storage.store import BlobColumn, StepOutput, Store, Workspace

STEP = Step(
    "test_downloads",
    version=1,
    sections=("sources", "images"),
    reads=(TEST_IMAGES,),
    writes=(DOWNLOADED_IMAGES, MISSING_IMAGES),
    libraries=("pillow",),
)


def download_test_images(source: SourceConfig, test_images: Artifact, store: Store, settings: Settings, config: ImagesConfig) -> Artifact:
    """Download the source's images in TEST_IMAGES; writes DOWNLOADED_IMAGES, and MISSING_IMAGES with a reason for each that failed.

    Raises:
        ImagesUnreachableError: the host does not answer for any image.
        ImagesError: the folder of the images does not exist, or the credentials are refused.
    """
    host = open_image_host(source, settings)
    key: dict[str, Any] = {"source": source.name, "images": host_address(source, settings), "path_field": source.path_field}
    if config.formats != ImagesConfig().formats:
        key["formats"] = sorted(config.formats)

    def build(space: Workspace) -> StepOutput:
        rows = store.table(test_images, TEST_IMAGES, ["source", "image_id", "path"])
        wanted = rows.loc[rows["source"] == source.name, ["image_id", "path"]].reset_index(drop=True)
        status = download_all(source, wanted, host, store, settings, config)
        if status.failed and not status.in_store.any() and all(failed.retryable for failed in status.failed.values()):
            raise ImagesUnreachableError(
                f"source {source.name!r}: none of {len(status)} test images could be downloaded from {redact_url(source.images)} "
                f"(the first: {status.failed[min(status.failed)].detail}); check sources.images in the plan"
            )
        missing = status.missing_table()
        write_table(space.out, DOWNLOADED_IMAGES, status.downloaded_table())
        write_table(space.out, MISSING_IMAGES, missing)
        counts = Counts(kept=int(status.in_store.sum()), dropped=dict(Counter(missing["reason"].tolist())), unit="images")
        final = status.is_final()
        return StepOutput(counts, blobs=(BlobColumn(file=DOWNLOADED_IMAGES.file),), final=final)

    def make(key: dict[str, Any]) -> Artifact:
        return store.make(STEP, inputs={"test_images": test_images}, config=key, build=build)

    return make_again_if_changed(make, key, local_folder(source, settings), store)
