"""One merge from files to file: the only room where all others meet.

``check`` refuses in a moment what ``run`` would refuse; ``run`` merges. ``check_reexport`` and
``reexport`` do the same for a merge that is written again with other strengths. ``catalog`` and
``prompt_for`` are what the front ends need to offer LoRAs and prefill prompts; ``queue`` runs
merges in the background for those that don't wait.
"""

from .catalog import CatalogEntry, catalog, prompt_for
from .overlap import Overlap
from .pace import Pace
from .preflight import Preflight, preflight
from .queue import REMEMBERED, Job, JobQueue
from .reexport import ReexportRequest, check_reexport, reexport
from .report import MergeReport
from .run import check, run
from .steering import Steerable, steerable, steerables

__all__ = [
    "REMEMBERED",
    "CatalogEntry",
    "Job",
    "JobQueue",
    "MergeReport",
    "Overlap",
    "Pace",
    "Preflight",
    "ReexportRequest",
    "Steerable",
    "catalog",
    "check",
    "check_reexport",
    "preflight",
    "prompt_for",
    "reexport",
    "run",
    "steerable",
    "steerables",
]
