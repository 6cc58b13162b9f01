"""The package step: model.tar.gz with its model card and reference predictions."""

from animl_pipeline.steps.package.step import package_model

__all__ = ["package_model"]
