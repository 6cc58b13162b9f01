"""Plan keys of earlier versions and what they are called now. A plan that uses an old key is refused with the new name."""

from __future__ import annotations

from collections.abc import Sequence

RENAMED = {
    "view": "model_input",
    "sources.key": "path_field",
    "sources.place_field": "location_field",
    "sources.places": "location_namespace",
    "sources.merge_places_within_m": "merge_locations_within_m",
    "sources.max_per_place": "max_per_location",
    "sources.animl.merge_places_within_m": "sources.merge_locations_within_m",
    "labels.max_per_place": "max_per_location",
    "labels.min_places": "min_locations",
    "labels.too_few": "on_too_few",
    "labels.conflicts": "on_conflict",
    "labels.classes.max_per_place": "max_per_location",
    "labels.classes.min_places": "min_locations",
    "detections.people": "images_with_people",
    "detections.repeat_occasions": "repeat_min_occasions",
    "detections.repeat_overlap": "repeat_iou",
    "crops.image_label": "image_level_label",
    "crops.max_per_image_label": "max_per_image_level_label",
    "splits.tries": "max_rounds",
    "splits.min_places_per_class": "min_locations_per_class",
    "splits.unknown_place": "unknown_location",
    "splits.burst_seconds": "sequence_gap_seconds",
    "train.on": "run_on",
    "train.weights_else": "fallback_weights",
    "train.accumulate": "accumulate_batches",
    "train.balance": "class_balance_beta",
    "train.focus": "focal_gamma",
    "thresholds.unknown.left_out": "held_out_classes",
    "gate.min_places": "min_locations",
    "gate.macro_f1_may_fall": "max_macro_f1_drop",
    "gate.invasive_recall_may_fall": "max_invasive_recall_drop",
    "package.golden": "reference_predictions",
    "release.batch": "batch_endpoint",
    "release.keep": "keep_versions",
    "release.approve_within_days": "approval_timeout_days",
    "release.register.rules_of": "rule_projects",
}
"""Old key with its section → new key. Positions in a list and names of classes are left out of the section."""


def renamed_key(location: Sequence[str]) -> str | None:
    """The present name of an old key, None where the key was never known.

    Args:
        location: the key's path in the plan, such as ``("sources", "0", "place_field")``.
    """
    parts = [p for p in location if not p.isdigit()]
    if parts[:2] == ["labels", "classes"] and len(parts) == 4:
        del parts[2]
    return RENAMED.get(".".join(parts))
