"""The step `replay`: a new model on images that the model in service answered, and which labels it would change."""

from animl_pipeline.steps.replay.replay_result import Replay, describe_replay
from animl_pipeline.steps.replay.step import PAGE_FILE, InService, estimate_seconds, read_replay, replay_model

__all__ = ["PAGE_FILE", "InService", "Replay", "describe_replay", "estimate_seconds", "read_replay", "replay_model"]
