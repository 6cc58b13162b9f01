"""The plan: what to train, from which labels, judged and released how. One YAML file a project, recorded in every card.

Where we are (buckets, roles, addresses of services) is never here: that is ``settings``. Relative paths in a plan start
at the settings' data folder, so that a plan holds on another machine.
"""

from animl_pipeline.config.detection import CropsPlan, DetectionsPlan
from animl_pipeline.config.evaluation import AimPlan, AuditPlan, GatePlan, ThresholdsPlan, UnknownPlan
from animl_pipeline.config.labels import ClassPlan, LabelsPlan, TaxonomyPlan, TaxonPlan
from animl_pipeline.config.plan import Overrides, Plan
from animl_pipeline.config.plan_file import check_plan, find_plan, load_plan
from animl_pipeline.config.release import BatchPlan, EndpointPlan, PackagePlan, RegisterPlan, ReleasePlan
from animl_pipeline.config.sources import AnimlPlan, ImagesPlan, MegadetectorPlan, SourcePlan
from animl_pipeline.config.splits import SplitsPlan
from animl_pipeline.config.training import TrainPlan
from animl_pipeline.config.triggers import WatchPlan

__all__ = [
    "AimPlan", "AnimlPlan", "AuditPlan", "BatchPlan", "ClassPlan", "CropsPlan", "DetectionsPlan", "EndpointPlan", "GatePlan", "ImagesPlan",
    "LabelsPlan", "MegadetectorPlan", "Overrides", "PackagePlan", "Plan", "RegisterPlan", "ReleasePlan", "SourcePlan", "SplitsPlan", "TaxonPlan",
    "TaxonomyPlan", "ThresholdsPlan", "TrainPlan", "UnknownPlan", "WatchPlan", "check_plan", "find_plan", "load_plan",
]  # fmt: skip
