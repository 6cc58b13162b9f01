"""The plan: what to train, from which labels, judged and released how. One YAML file a project, recorded in every card.

Where we are (buckets, roles, addresses of services) is never here: that is ``settings``. Relative paths in a plan start
at the settings' data folder, so that a plan holds on another machine.
"""

from animl_pipeline.config.detections_and_crops import CropsConfig, DetectionsConfig
from animl_pipeline.config.evaluation import AimConfig, AuditConfig, AutoAcceptConfig, GateConfig, ProductionConfig, ThresholdsConfig, UnknownConfig
from animl_pipeline.config.labels import ClassConfig, LabelsConfig, NothingConfig, TaxonConfig, TaxonomyConfig
from animl_pipeline.config.package_and_release import BatchEndpointConfig, PackageConfig, PlannedEndpoint, RegisterConfig, ReleaseConfig
from animl_pipeline.config.plan import Plan, WatchConfig
from animl_pipeline.config.plan_file_and_overrides import Overrides, check_plan, find_plan, load_plan
from animl_pipeline.config.review import ReviewConfig
from animl_pipeline.config.sources_and_images import AnimlExportConfig, ImagesConfig, MegadetectorConfig, SourceConfig
from animl_pipeline.config.splits import SplitsConfig
from animl_pipeline.config.training import TrainingConfig

__all__ = [
    "AimConfig", "AnimlExportConfig", "AuditConfig", "AutoAcceptConfig", "BatchEndpointConfig", "ClassConfig", "CropsConfig",
    "DetectionsConfig", "GateConfig", "ImagesConfig", "LabelsConfig", "MegadetectorConfig", "NothingConfig", "Overrides", "PackageConfig",
    "Plan", "PlannedEndpoint", "ProductionConfig", "RegisterConfig", "ReleaseConfig", "ReviewConfig", "SourceConfig", "SplitsConfig",
    "TaxonConfig", "TaxonomyConfig", "ThresholdsConfig", "TrainingConfig", "UnknownConfig", "WatchConfig", "check_plan", "find_plan",
    "load_plan",
]  # fmt: skip
