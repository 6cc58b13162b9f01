"""What one answer for a whole burst is worth: macro F1 and accuracy at other locations, with the mean of the burst's logits and without.

python benchmarks/smoothing.py --data FOLDER

A linear head on frozen networks learns at four of five groups of locations and answers for the fifth. The bursts are those of one species, as
`animl-pipeline predict --smooth` finds them by time where animals do not mix.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from measure import conclude, show
from real_crops import load_real_crops
from sklearn.metrics import accuracy_score, f1_score
from strangers import FOLDS, REGULARISATION, assign_groups, choose_classes

from animl_pipeline.config.settings import load_settings
from animl_pipeline.review.score_images import smooth_over_sequences
from animl_pipeline.steps.training.linear_head import fit_heads
from animl_pipeline.storage.store import open_store

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Score the answers of single images and of bursts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the real images (default: ANIML_DATA)")
    parser.add_argument("--store", type=Path, default=ROOT / "runs" / "real-crops", help="store for crops and embeddings (default: %(default)s)")
    given = parser.parse_args()
    settings = load_settings()
    settings = settings.model_copy(update={"store": str(given.store), "data": given.data or settings.data})
    real, rows, changes = load_real_crops(open_store(settings), settings), [], {}
    for level in ("coarse", "species"):
        chosen, targets, names = choose_classes(real, level)
        fold, everything = assign_groups(chosen.rows), np.concatenate(chosen.blocks, axis=1).astype(np.float64)
        logits = np.zeros((len(targets), len(names)))
        for group in range(FOLDS):
            (head,) = fit_heads(chosen.blocks, targets, len(names), fold != group, [REGULARISATION])
            logits[fold == group] = head.logits(everything[fold == group])
        probability = np.exp(logits - logits.max(axis=1, keepdims=True))
        probability /= probability.sum(axis=1, keepdims=True)
        answers = {"single images": probability, "smoothed": smooth_over_sequences(probability, pd.factorize(chosen.rows["burst"])[0])}
        scores = {}
        for name, found in answers.items():
            said = found.argmax(axis=1)
            scores[name] = (float(f1_score(targets, said, average="macro")), float(accuracy_score(targets, said)))
            rows.append([level, name, len(targets), chosen.rows["burst"].nunique(), *scores[name]])
        changes[level] = scores["smoothed"][0] - scores["single images"][0]
    show("Answers at other locations", ("classes", "answers", "crops", "bursts", "macro F1", "accuracy"), rows)
    shown = ", ".join(f"{change:+.3f} ({level} classes)" for level, change in changes.items())
    conclude("smoothing", figure=f"change of macro F1: {shown}", aim="above 0", met=min(changes.values()) > 0)


if __name__ == "__main__":
    main()
