"""Match labelled images to the files of a results file by their paths, where it is certain that both are the same image,
and turn its boxes to the image as stored.

Cameras give the same names to their images again and again (IMG_0001.JPG), so the end of a path alone proves nothing.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from animl_pipeline.config import DetectionsConfig
from animl_pipeline.core.errors import DetectionsError
from animl_pipeline.core.image_orientation import FRAME_MISMATCH, MISMATCH, SHOWN, find_frames, turn_to_stored
from animl_pipeline.steps.detections.detector import Detection, clean_detections
from animl_pipeline.steps.detections.labelled_images import ImageKey, LabelledImage
from animl_pipeline.steps.detections.read_results_file import PLAN_KEY, FileResult, Results, normal_path

log = logging.getLogger(__name__)

FOLDERS_KEY = "detections.results_folders"
NOT_IN_RESULTS = "not_in_results"
OTHER_FOLDER = "other_folder_in_results"
SEVERAL_IN_RESULTS = "several_in_results"
UNMATCHED = frozenset({NOT_IN_RESULTS, OTHER_FOLDER, SEVERAL_IN_RESULTS})
"""Reasons for an image without results."""

ImageName = tuple[str, str]
"""Source and file name."""
Parts = tuple[str, ...]
UNKNOWN_SIZE = (0, 0)


class Matches(NamedTuple):
    """How images and results files belong together.

    Attributes:
        files: image → its file in the results.
        reasons: image → why it has none, a word of ``UNMATCHED``.
        example: an image and the file with its name in another folder; None where there is none.
    """

    files: dict[ImageName, str]
    reasons: dict[ImageName, str]
    example: tuple[ImageName, str] | None


def match_by_path(
    names: Iterable[ImageName], files: Collection[str], image_folders: Mapping[str, str], results_folders: Mapping[str, str]
) -> Matches:
    """The results file of each image.

    A file is an image's if its path is the image's name, alone or with the source's name or the plan's ``results_folders`` in front. Else it
    must end in the image's name and agree with the folder of the source's images as far as it goes, or share at least the last folder of it.
    Else, if the name has folders and the results have absolute paths, the source's images may have been in one other folder, unless its name
    is another source's or differs in a number only (cam1 and cam2, 2023 and 2024). If several files fit, none does. A file that fits images
    of several sources is that of the image which agrees with it best.

    ``files``: paths in the results file, as :func:`normal_path` writes them. ``image_folders``: source → its ``images`` in the plan, where
    known. ``results_folders``: source → the folder of the results file in which its images are, as the plan says.
    """
    by_base_name: dict[str, list[Parts]] = defaultdict(list)
    for file in files:
        parts = tuple(file.split("/"))
        by_base_name[parts[-1]].append(parts)
    by_source: dict[str, list[str]] = defaultdict(list)
    for source, name in names:
        by_source[source].append(name)
    matches = Matches({}, {}, None)
    for source, source_names in by_source.items():
        others = {folder for other in {*by_source, *image_folders} - {source} for folder in (other, *_parts(image_folders.get(other, ""))[-1:])}
        found = _match_source(source, source_names, files, by_base_name, image_folders.get(source, ""), results_folders.get(source), others)
        matches = Matches(matches.files | found.files, matches.reasons | found.reasons, matches.example or found.example)
    return _without_shared_files(matches, image_folders, results_folders)


def _without_shared_files(matches: Matches, image_folders: Mapping[str, str], results_folders: Mapping[str, str]) -> Matches:
    """The matches, in which a file that several images fit belongs to the one that agrees with it best, and to none if several do equally.

    Images of two sources at the same path are the same image, so both keep the file.
    """
    claims: dict[str, list[ImageName]] = defaultdict(list)
    for key, file in matches.files.items():
        claims[file].append(key)
    for file, keys in claims.items():
        paths = {(source, name): (*_parts(image_folders.get(source, "")), *_parts(name)) for source, name in keys}
        if len(set(paths.values())) == 1:
            continue
        agreement = {
            key: (key[0] in results_folders, file == f"{normal_path(key[0])}/{normal_path(key[1])}", _shared_end(tuple(file.split("/")), paths[key]))
            for key in keys
        }
        best = {key for key in keys if agreement[key] == max(agreement.values())}
        certain = best if len({paths[key] for key in best}) == 1 else set()
        for key in set(keys) - certain:
            del matches.files[key]
            matches.reasons[key] = SEVERAL_IN_RESULTS
    return matches


def check_any_match(matches: Matches, files: Collection[str]) -> None:
    """Check that the results contain at least one of the images, and warn of images whose name is in another folder only.

    Raises:
        DetectionsError: ``folders_contradict`` or ``other_images``.
    """
    contradictions = Counter(matches.reasons.values())[OTHER_FOLDER]
    advice = ""
    if matches.example is not None:
        (source, name), file = matches.example
        folder = file.removesuffix(normal_path(name)).rstrip("/") or "/"
        advice = f"if it is the same image, set {FOLDERS_KEY} to {{{source}: {folder}}}, else correct {PLAN_KEY} in the plan"
        if matches.files:
            log.warning("detections: %d images are not in their folder of the results, such as %s: found %s; %s", contradictions, name, file, advice)
    if matches.files or not matches.reasons:
        return
    wanted, found = next(iter(matches.reasons))[1], next(iter(files), "none")
    if matches.example is not None:
        (_, wanted), found = matches.example
        raise DetectionsError(
            f"{PLAN_KEY}: expected results for the labelled images, such as {wanted}, found {found}, which may be another image of that name; "
            f"{advice}",
            code="folders_contradict",
            wanted=wanted,
            found=found,
        )
    raise DetectionsError(
        f"{PLAN_KEY}: expected results for the labelled images, such as {wanted}, found {len(files):,} other images, such as {found}; "
        f"correct {PLAN_KEY} in the plan, or set {FOLDERS_KEY} to the folder of the results in which each source's images are",
        code="other_images",
        wanted=wanted,
        found=found,
    )


def _match_source(
    source: str,
    names: Sequence[str],
    files: Collection[str],
    by_base_name: Mapping[str, list[Parts]],
    image_folder: str,
    results_folder: str | None,
    other_folders: Collection[str],
) -> Matches:
    """The matches of one source. A match by another folder counts only if all of them have the same one."""
    root = _parts(image_folder)
    matches = Matches({}, {}, None)
    elsewhere: dict[ImageName, list[Parts]] = {}
    for name in names:
        key, normal = (source, name), normal_path(name)
        prefixes = (f"{normal_path(source)}/", "") if results_folder is None else (_as_prefix(results_folder),)
        exact = next((prefix + normal for prefix in prefixes if prefix + normal in files), "")
        parts = _parts(normal)
        ending = [] if exact or results_folder is not None else [f for f in by_base_name.get(parts[-1], ()) if f[-len(parts) :] == parts]
        certain = _agreeing(ending, (*root, *parts), len(parts))
        if exact or len(certain) == 1:
            matches.files[key] = exact or "/".join(certain[0])
        elif certain:
            matches.reasons[key] = SEVERAL_IN_RESULTS
        elif possible := [f for f in ending if len(parts) > 1 and _is_absolute(f) and not _contradicts(f, root, len(parts), other_folders)]:
            elsewhere[key] = possible
        elif ending:
            matches.reasons[key] = OTHER_FOLDER
            matches = matches._replace(example=matches.example or (key, "/".join(ending[0])))
        else:
            matches.reasons[key] = NOT_IN_RESULTS
    _match_elsewhere(elsewhere, matches)
    return matches


def _match_elsewhere(elsewhere: Mapping[ImageName, list[Parts]], matches: Matches) -> None:
    """Match images whose files are below one folder of the results that is not the folder of the images. Adds to ``matches``."""
    folders = {file[: -len(_parts(normal_path(name)))] for (_, name), possible in elsewhere.items() for file in possible}
    if len(folders) == 1:
        matches.files.update({key: "/".join(possible[0]) for key, possible in elsewhere.items()})
        log.info("detections: the results for %d images of %s are those below %s", len(elsewhere), next(iter(elsewhere))[0], "/".join(*folders))
    else:
        matches.reasons.update(dict.fromkeys(elsewhere, SEVERAL_IN_RESULTS))


def _agreeing(files: Sequence[Parts], image: Parts, name_parts: int) -> list[Parts]:
    """The files that agree best with an image's whole path, if they agree with it completely, or at least with the folder above its name."""
    shared = {file: _shared_end(file, image) for file in files}
    certain = {file: n for file, n in shared.items() if n == len(file) or n > name_parts}
    best = max(certain.values(), default=0)
    return [file for file, n in certain.items() if n == best]


def _shared_end(one: Parts, other: Parts) -> int:
    """How many of their last parts two paths share."""
    return next((i for i, (a, b) in enumerate(zip(reversed(one), reversed(other), strict=False)) if a != b), min(len(one), len(other)))


def _contradicts(file: Parts, root: Parts, name_parts: int, other_folders: Collection[str]) -> bool:
    """Whether the folder above an image's name is another source's, or differs from the source's own in a number only."""
    folder, own = file[-name_parts - 1], root[-1] if root else ""
    return folder in other_folders or re.sub(r"\d+", "", folder) == re.sub(r"\d+", "", own)


def _is_absolute(path: Parts) -> bool:
    """Whether a path begins at the root of a system or drive, or names a host."""
    return path[0] == "" or path[0].endswith(":")


def _as_prefix(folder: str) -> str:
    """What stands before the name of an image in a folder: nothing where the plan names the folder of the results itself, "." or ""."""
    normal = normal_path(folder)
    return "" if normal in {"", "."} else f"{normal.rstrip('/')}/"


def _parts(path: str) -> Parts:
    """The parts of a path. A folder without a name has none."""
    normal = normal_path(path).rstrip("/")
    return tuple(normal.split("/")) if normal not in {"", "."} else ()


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
