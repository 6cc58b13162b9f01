"""A first plan, drafted from what exports hold: classes that can be learnt, what is left out, and what looks wrong.

Public doors: :func:`surveyed` looks at an export, :func:`drafted` suggests, :func:`plan_text` writes it down.
"""

from animl_pipeline.draft.suggesting import Draft, Suggested, drafted
from animl_pipeline.draft.survey import Category, Survey, surveyed
from animl_pipeline.draft.writing import plan_text

__all__ = ["Category", "Draft", "Suggested", "Survey", "drafted", "plan_text", "surveyed"]
