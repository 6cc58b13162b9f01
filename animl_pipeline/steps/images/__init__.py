"""The step `images`: verified copies of the images that an export names. Only images that the store lacks are downloaded.

Each wanted image ends in one of two tables: images.parquet with the sha256 of its content, or missing.parquet with the reason. A
failed image never stops the others.
"""

from typing import TYPE_CHECKING

from animl_pipeline.core.lazy_exports import lazy_exports
from animl_pipeline.steps.images.download import open_image_host

if TYPE_CHECKING:
    from animl_pipeline.steps.images.step import download_images
    from animl_pipeline.steps.images.test_image_downloads import download_test_images
    from animl_pipeline.steps.images.wanted_images_and_estimate import DownloadEstimate, estimate_download

__all__ = ["DownloadEstimate", "download_images", "download_test_images", "estimate_download", "open_image_host"]
__getattr__ = lazy_exports(
    __name__,
    download_images="step",
    download_test_images="test_image_downloads",
    DownloadEstimate="wanted_images_and_estimate",
    estimate_download="wanted_images_and_estimate",
)
