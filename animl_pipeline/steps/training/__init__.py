"""Train the classifier on the train split, export it to ONNX, and check that ONNX and torch agree.

Importing this package does not load torch, timm or lightning. They are loaded when there is a model to train.
"""

from animl_pipeline.steps.training.check_backbone_and_weights import check_backbone_and_weights
from animl_pipeline.steps.training.step import CHECKPOINT_FILE, STEP, train_classifier

__all__ = ["CHECKPOINT_FILE", "STEP", "check_backbone_and_weights", "train_classifier"]
