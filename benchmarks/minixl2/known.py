"""The drawings that MiniXL is trained on."""

from __future__ import annotations

from typing import Any

import numpy as np

from .choice import HELDOUT_STYLES, KNOWN_SUBJECTS, SIBLINGS
from .data import Drawings


def known_rows(drawings: Drawings) -> np.ndarray[Any, Any]:
    """Rows of known subjects in known styles, (n,)."""
    subjects = [drawings.subjects.index(name) for name in KNOWN_SUBJECTS if name in drawings.subjects]
    unknown = [
        drawings.styles.index(name) for name in (*HELDOUT_STYLES, *SIBLINGS) if name in drawings.styles
    ]
    return np.flatnonzero(np.isin(drawings.subject, subjects) & ~np.isin(drawings.style, unknown))
