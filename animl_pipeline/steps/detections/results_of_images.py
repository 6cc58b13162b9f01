"""The detections of each labelled image in a results file: found by its path, and turned to the image as stored."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from animl_pipeline.config import DetectionsConfig
from animl_pipeline.core.image_orientation import FRAME_MISMATCH, MISMATCH, SHOWN, find_frames, turn_to_stored
from animl_pipeline.steps.detections.detector import Detection, clean_detections
from animl_pipeline.steps.detections.labelled_images import ImageKey, LabelledImage
from animl_pipeline.steps.detections.match_results_by_path import check_any_match, match_by_path
from animl_pipeline.steps.detections.read_results_file import FileResult, Results

UNKNOWN_SIZE = (0, 0)


def match_results(
    images: Mapping[ImageKey, LabelledImage], results: Results, config: DetectionsConfig, image_folders: Mapping[str, str]
) -> tuple[dict[ImageKey, FileResult], dict[str, int]]:
    """The detections of each image, or the reason why there are none; and what is to be counted besides.

    Raises:
        DetectionsError: the results contain none of the images, and not all boxes are reviewed.
    """
    names = {key: (key[0], image.file_name) for key, image in images.items()}
    matches = match_by_path(names.values(), results.by_file, image_folders, config.results_folders)
    if not all(image.reviewed for image in images.values()):
        check_any_match(matches, results.by_file)
    files = {key: matches.files[name] for key, name in names.items() if name in matches.files}
    found: dict[ImageKey, FileResult] = {key: matches.reasons[name] for key, name in names.items() if name in matches.reasons}
    turned, notes = _turn({key: (images[key], file) for key, file in files.items()}, results, config)
    return {key: (turned | found)[key] for key in images}, notes | {"unusable_boxes": results.unusable}


def _turn(
    files: Mapping[ImageKey, tuple[LabelledImage, str]], results: Results, config: DetectionsConfig
) -> tuple[dict[ImageKey, FileResult], dict[str, int]]:
    """The detections of each image with boxes in the frame stored, and how many images were turned or may have to be."""
    named = np.array([results.sizes.get(file, UNKNOWN_SIZE) for _, file in files.values()], float)
    stored = np.array([(image.width, image.height) for image, _ in files.values()], float)
    orientation = np.array([image.orientation for image, _ in files.values()], np.int64)
    frames = find_frames(named, stored, orientation, config.results_frame, results.turned)
    turned: dict[ImageKey, FileResult] = {}
    for (key, (image, file)), frame in zip(files.items(), frames.code, strict=True):
        result = results.by_file[file]
        if frame == MISMATCH and not isinstance(result, str):
            result = FRAME_MISMATCH
        elif frame == SHOWN and not isinstance(result, str):
            result = _turn_detections(result, image.orientation)
        turned[key] = result
    return turned, {"images_turned": int((frames.code == SHOWN).sum()), "frame_assumed": int(frames.assumed.sum())}


def _turn_detections(detections: list[Detection], orientation: int) -> list[Detection]:
    boxes = np.array([d[2:] for d in detections], float).reshape(-1, 4)
    turned = turn_to_stored(boxes, np.full(len(boxes), orientation))
    return clean_detections(Detection(d.category, d.confidence, *map(float, box)) for d, box in zip(detections, turned, strict=True))
