"""The training curves as an image. matplotlib's global state (pyplot) is not used."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_training_curves(history: pd.DataFrame) -> bytes:
    """A PNG of the losses and the val macro average precision by epoch; ``history`` as ``TRAINING_HISTORY``."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 3.2), dpi=110, layout="constrained")
    losses, precision = figure.subplots(1, 2)
    for column, label in (("train_loss", "train"), ("val_loss", "val")):
        losses.plot(history["epoch"], history[column], marker="o", markersize=3, label=label)
    losses.set_title("loss")
    losses.legend()
    precision.plot(history["epoch"], history["val_macro_ap"], marker="o", markersize=3, color="tab:orange")
    precision.set_title("mean average precision on val")
    precision.set_ylim(0, 1)
    for axes in (losses, precision):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _png(figure)


def plot_cross_validation(table: pd.DataFrame) -> bytes:
    """A PNG of the scores by regularisation of the head; ``table`` as ``CROSS_VALIDATION``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), dpi=110, layout="constrained")
    loss, precision = figure.subplots(1, 2)
    heads = table[table["recipe"] == "head"]
    for axes, column, title in ((loss, "log_loss", "log loss"), (precision, "macro_ap", "mean average precision")):
        axes.semilogx(heads["regularisation"], heads[column], marker="o", markersize=3)
        axes.axvline(heads.loc[heads["chosen"], "regularisation"].iloc[0], color="tab:grey", linewidth=1)
        axes.set_title(f"{title} at locations not learnt from", fontsize=9)
        axes.set_xlabel("C of the head (line: chosen)")
    precision.set_ylim(0, 1)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()
