"""Train the classifier on the train split, export it to ONNX, and check that ONNX and torch agree.

Importing this package does not load torch, timm, lightning or pandas. They are loaded when there is a model to train.
"""

from typing import TYPE_CHECKING

from animl_pipeline.core.lazy_exports import lazy_exports
from animl_pipeline.steps.training.check_backbone_and_weights import check_backbone_and_weights

if TYPE_CHECKING:
    from animl_pipeline.steps.training.step import CHECKPOINT_FILE, STEP, train_classifier

__all__ = ["CHECKPOINT_FILE", "STEP", "check_backbone_and_weights", "train_classifier"]
__getattr__ = lazy_exports(__name__, CHECKPOINT_FILE="step", STEP="step", train_classifier="step")
