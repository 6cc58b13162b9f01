"""A first plan, drafted from what exports hold: classes that can be learnt, what is left out, and what looks wrong.

Public doors: :func:`surveyed` looks at an export, :func:`drafted` suggests, :func:`plan_text` writes it down.
"""

from animl_pipeline.plan_init.render_yaml import plan_text
from animl_pipeline.plan_init.suggest import Draft, Suggested, drafted
from animl_pipeline.plan_init.survey import Category, Survey, surveyed

__all__ = ["Category", "Draft", "Suggested", "Survey", "drafted", "plan_text", "surveyed"]
