"""MODEL_CARD.md: intended use, data, scores and limits, in the usual form of model cards (Mitchell et al. 2019, arXiv 1810.03993)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from animl_pipeline.config import Plan
from animl_pipeline.core.records import Metrics, ModelCard

TEMPLATE = Path(__file__).with_name("model_card.md.j2")
SURE_EXAMPLES, SURE_LOCATIONS = 30, 3


def model_card(card: ModelCard, metrics: Metrics, plan: Plan) -> str:
    """The card as Markdown."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - Markdown
    environment.filters.update(share="{:.2f}".format, ends=_ends, cell=_cell)
    thin = [c for c in metrics.classes if c.examples < SURE_EXAMPLES or c.locations < SURE_LOCATIONS]
    values: dict[str, Any] = {"card": card, "metrics": metrics, "plan": plan, "thin": thin, "sources": card.plan.get("sources", [])}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(values)


def _ends(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.2f}–{interval[1]:.2f})"


def _cell(text: str) -> str:
    """Text that breaks no table and begins no markup."""
    return " ".join(str(text).replace("|", "/").replace("<", "‹").replace(">", "›").split())
