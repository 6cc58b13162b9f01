"""Compute the embeddings of crops by frozen networks, once for each crop and network.

Importing this package does not load torch or timm. They are loaded when there is a crop without its embedding.
"""

from animl_pipeline.steps.embeddings.step import STEP, embed_crops

__all__ = ["STEP", "embed_crops"]
