"""The steps of the pipeline, in the order in which they run: export, images, labels, detections, crops, splits, training, calibration, evaluation, package."""
