"""A first plan from exports: survey_export counts what an export has, suggest_plan chooses classes, render_plan writes the YAML."""

from animl_pipeline.plan_init.render_yaml import render_plan
from animl_pipeline.plan_init.suggest_classes import SuggestedClass, SuggestedPlan, suggest_plan
from animl_pipeline.plan_init.survey import LabelCounts, Survey, survey_export

__all__ = ["LabelCounts", "SuggestedClass", "SuggestedPlan", "Survey", "render_plan", "suggest_plan", "survey_export"]
