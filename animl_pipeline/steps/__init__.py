"""The steps of the pipeline, each in its own package.

They run in this order: export, images, labels, detections, crops, splits, training, calibration, evaluation, package.
"""
