"""One merge from files to file: the only room where all others meet.

``check`` refuses in a moment what ``run`` would refuse; ``run`` merges. ``catalog`` and
``prompt_for`` are what the front ends need to offer LoRAs and prefill prompts; ``queue`` runs
merges in the background for those that don't wait.
"""

from .catalog import CatalogEntry, catalog, prompt_for
from .queue import REMEMBERED, Job, JobQueue
from .report import MergeReport
from .run import check, run

__all__ = [
    "REMEMBERED",
    "CatalogEntry",
    "Job",
    "JobQueue",
    "MergeReport",
    "catalog",
    "check",
    "prompt_for",
    "run",
]
