"""How much is tried: seeds and moments by default, all of them with CALLSHEET_THOROUGH=1.

A default run has to notice a wrong implementation; a thorough one looks for the rare interleaving.
"""

from __future__ import annotations

import os

THOROUGH = os.environ.get("CALLSHEET_THOROUGH", "0") not in ("", "0")


def seeds(few: int, many: int) -> range:
    """So many seeds by default, and so many in a thorough run."""
    return range(many if THOROUGH else few)


def stride(wide: int, narrow: int) -> int:
    """How many moments lie between two that are tried."""
    return narrow if THOROUGH else wide
