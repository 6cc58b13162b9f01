"""What lies in a store, who needs it, and the way out for the rest."""

from animl_pipeline.storage.gc.collect import Cleared, Pile, Rules, clear_store
from animl_pipeline.storage.gc.inventory import Holding, Inventory, take_inventory

__all__ = ["Cleared", "Holding", "Inventory", "Pile", "Rules", "clear_store", "take_inventory"]
