"""Draw what MiniXL and its example LoRAs can do, on one sheet.

python -m benchmarks.minixl.sheet [--out docs/images/minixl.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.drawing import contact_sheet, draw
from benchmarks.methods import SUBJECT_PROMPT, lora_file
from lib_ziplora.hosts.standalone import StandaloneHost

from .choice import STYLE_TOKEN, caption

ROOT = Path(__file__).resolve().parent.parent.parent
SEEDS = range(4)
BASE = (("cherries", "flat"), ("bus", "twemoji"), ("frog", "emojione"), ("lemon", "classic"))
SUBJECTS, STYLES = ("turtle", "crown"), ("fluent-emoji", "emojione-monotone")


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser("python -m benchmarks.minixl.sheet", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "minixl.png")
    args = parser.parse_args(arguments)
    pipeline = StandaloneHost(ROOT / "benchmarks" / "minixl" / "model").pipeline()
    pipeline.set_progress_bar_config(disable=True)
    wanted: list[tuple[str, Path | None, str]] = [
        (f"{subject}, {word}", None, caption(subject, word)) for subject, word in BASE
    ]
    wanted += [(f"LoRA {name}", lora_file("subject", name), SUBJECT_PROMPT) for name in SUBJECTS]
    wanted += [
        (f"LoRA {name}", lora_file("style", name), caption("cherries", STYLE_TOKEN)) for name in STYLES
    ]
    rows = {title: {"": draw(pipeline, file, prompt, list(SEEDS))} for title, file, prompt in wanted}
    contact_sheet(rows, [""]).quantize(128).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
