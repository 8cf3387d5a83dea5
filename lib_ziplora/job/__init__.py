"""One merge from files to file: the only room where all others meet.

``check`` refuses in a moment what ``run`` would refuse; ``run`` merges. ``catalog`` and
``prompt_for`` are what the front ends need to offer LoRAs and prefill prompts.
"""

from .catalog import CatalogEntry, catalog, prompt_for
from .report import MergeReport
from .run import check, run

__all__ = ["CatalogEntry", "MergeReport", "catalog", "check", "prompt_for", "run"]
