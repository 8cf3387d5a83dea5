"""``compare``: a merge drawn beside what it was made of."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import OutputError
from ..hosts import Sampler
from ..hosts.standalone import StandaloneHost
from ..library.card import write_preview
from ..pictures.compare import compare, save_sheet
from ..pictures.comparison import CompareRequest
from .terminal import ProgressBar, ctrl_c_interrupts

ENDING = ".png"

DESCRIPTION = """\
Draw one sheet of pictures with the same seeds: each LoRA alone, their plain sum and the merge,
for the prompts that it was made with or for those that are given. It needs the coefficients
that the merge has left beside its file (NAME.ziplora) and the LoRAs that it was made of.
"""

EPILOG = """\
example, after the example of merge:

  python -m lib_ziplora compare turtle-fluent.safetensors --checkpoint benchmarks/minixl/model \\
      --lora-dir benchmarks/minixl/loras --seeds 2 --guidance-scale 3.5 -o turtle-fluent.png

interrupted (Ctrl+C), it writes the pictures that are finished.
"""


def add_arguments(one: argparse.ArgumentParser) -> None:
    """Which merge, where the sheet goes, and how the pictures are drawn."""
    plain = Sampler()
    one.add_argument("source", metavar="MERGED", help="merged LoRA file (or its name in a --lora-dir)")
    one.add_argument("-o", "--output", required=True, type=Path, metavar="SHEET.png", help="the sheet")
    one.add_argument("--force", action="store_true", help="replace SHEET.png if it is there")
    group = one.add_argument_group("pictures")
    group.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="drawn in every row (may be repeated; default: the prompts of the merge, and one for all)",
    )
    group.add_argument("--seeds", type=int, default=1, metavar="N", help="of each row and prompt (default 1)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="the first seed (default 0)")
    group.add_argument("--sampler", default="", metavar="NAME", help="default: the checkpoint's own")
    group.add_argument("--steps", type=int, default=plain.steps, metavar="N", help="default %(default)s")
    group.add_argument(
        "--guidance-scale", type=float, default=plain.guidance_scale, metavar="F", help="default %(default)s"
    )
    for side in ("width", "height"):
        text = "in pixels (default: the checkpoint's own)"
        group.add_argument(f"--{side}", type=int, default=0, metavar="N", help=text)
    group.add_argument("--negative-prompt", default="", metavar="TEXT", help="default: none")
    group.add_argument("--pictures", type=Path, metavar="DIR", help="save every picture there too")
    group.add_argument(
        "--preview",
        action="store_true",
        help="make the merge's picture the preview of its card, where there is none of your own",
    )


def compare_from(args: argparse.Namespace) -> CompareRequest:
    """The comparison that the arguments ask for.

    Raises:
        ConfigError: a value outside its range.
    """
    how = (args.sampler, args.steps, args.guidance_scale, args.width, args.height, args.negative_prompt)
    return CompareRequest(args.source, tuple(args.prompt), args.seeds, args.seed, Sampler(*how))


def run(args: argparse.Namespace, host: StandaloneHost) -> None:
    """Draw, write the sheet and print where it is.

    Raises:
        ZipLoraError: nothing could be drawn, or the sheet can't be written.
    """
    _check_sheet(args.output, args.force)
    bar = ProgressBar()
    try:
        with host.exclusive(), ctrl_c_interrupts(host):
            done = compare(args.request, host, bar)
    finally:
        bar.close()
    save_sheet(done, args.output, args.force)
    print(args.output)
    if done.stopped:
        print(f"warning: {done.stopped}", file=sys.stderr)
    best = done.best_preview()
    if args.preview and best is not None:
        print(write_preview(args.request.merged, host, best))


def _check_sheet(path: Path, replace: bool) -> None:
    """Find out before anything is drawn whether the sheet can be written."""
    if path.suffix.lower() != ENDING:
        raise OutputError(f"The sheet {path} must end in {ENDING}.")
    if not path.parent.is_dir():
        raise OutputError(f"The folder {path.parent} of the sheet does not exist; create it first.")
    if path.exists() and not replace:
        raise OutputError(f"{path} exists already. Give another name, or --force to replace it.")
