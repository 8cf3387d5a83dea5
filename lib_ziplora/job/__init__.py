"""One merge from files to file: the only room where all others meet.

``check`` refuses in a moment what ``run`` would refuse; ``run`` merges. ``check_reexport`` and
``reexport`` do the same for a merge that is written again with other strengths. ``catalog`` and
``prompt_for`` are what the front ends need to offer LoRAs and prefill prompts; ``queue`` runs
merges in the background for those that don't wait. ``compare`` draws what a finished merge is
worth, ``card`` makes it look finished in the LoRA pane, ``document`` tells what it did. ``run_matrix`` merges
every subject with every style.
"""

from .card import card_path, with_card, write_card, write_preview
from .catalog import CatalogEntry, catalog, judged, prompt_for
from .compare import check_compare, compare, merge_prompts, save_sheet
from .comparison import CompareRequest, Comparison
from .document import Document, document
from .kept import data_folder
from .matrix import Cell, MatrixRequest, check_matrix, run_matrix
from .overlap import Overlap
from .pace import Pace
from .preflight import Preflight, preflight
from .queue import REMEMBERED, Job, JobQueue
from .recent import RecentMerge, RecentMerges
from .reexport import ReexportRequest, check_reexport, reexport
from .report import MergeReport
from .run import check, run
from .steering import Steerable, steerable, steerables
from .suggesting import Prompted, combined_prompt

__all__ = [
    "REMEMBERED",
    "CatalogEntry",
    "Cell",
    "CompareRequest",
    "Comparison",
    "Document",
    "Job",
    "JobQueue",
    "MatrixRequest",
    "MergeReport",
    "Overlap",
    "Pace",
    "Preflight",
    "Prompted",
    "RecentMerge",
    "RecentMerges",
    "ReexportRequest",
    "Steerable",
    "card_path",
    "catalog",
    "check",
    "check_compare",
    "check_matrix",
    "check_reexport",
    "combined_prompt",
    "compare",
    "data_folder",
    "document",
    "judged",
    "merge_prompts",
    "preflight",
    "prompt_for",
    "reexport",
    "run",
    "run_matrix",
    "save_sheet",
    "steerable",
    "steerables",
    "with_card",
    "write_card",
    "write_preview",
]
