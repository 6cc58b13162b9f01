"""A scored model → model.tar.gz that ships, with its model card for people; or one line that says why it does not ship.

::

    packing     the verb: package_model
    model_card  MODEL_CARD.md: what the model is for, what it knows, where it fails
"""

from animl_pipeline.steps.package.step import package_model

__all__ = ["package_model"]
