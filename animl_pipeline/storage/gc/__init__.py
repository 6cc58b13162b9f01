"""Garbage collection: what a store holds, what of it is needed, and the deletion of the rest."""

from animl_pipeline.storage.gc.collect import GcGroup, GcReport, GcRules, collect_garbage
from animl_pipeline.storage.gc.inventory import Inventory, InventoryRow, read_inventory

__all__ = ["GcGroup", "GcReport", "GcRules", "Inventory", "InventoryRow", "collect_garbage", "read_inventory"]
