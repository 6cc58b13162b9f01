"""The plan: what to train, from which labels, judged and released how. One YAML file a project, recorded in every card.

Where we are (buckets, roles, addresses of services) is never here: that is ``settings``. Relative paths in a plan start
at the settings' data folder, so that a plan holds on another machine.
"""

from animl_pipeline.plan.labels import ClassPlan, LabelsPlan
from animl_pipeline.plan.reading import check_plan, load_plan
from animl_pipeline.plan.release import PackagePlan, ReleasePlan
from animl_pipeline.plan.seeing import CropsPlan, DetectionsPlan
from animl_pipeline.plan.sources import AnimlPlan, SourcePlan
from animl_pipeline.plan.splits import SplitsPlan
from animl_pipeline.plan.training import TrainPlan
from animl_pipeline.plan.whole import Plan

__all__ = [
    "AnimlPlan", "ClassPlan", "CropsPlan", "DetectionsPlan", "LabelsPlan", "PackagePlan", "Plan",
    "ReleasePlan", "SourcePlan", "SplitsPlan", "TrainPlan", "check_plan", "load_plan",
]  # fmt: skip
