"""The arguments of the command line and the help that explains them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .. import __version__
from ..config import ROLES, MergeRequest
from ..pictures.comparison import CompareRequest
from ..pipeline.matrix import MatrixRequest
from ..pipeline.reexport import ReexportRequest
from ..pipeline.resize import ResizeRequest
from . import commands
from .options import add_options, from_arguments, matrix_from, merge_from

DESCRIPTION = """\
ZipLoRA for Stable Diffusion XL: merge subject LoRAs and style LoRAs into one file.

  merge      learn how the LoRAs fit together and write one
  check      problems, layers, overlap, size and time of a merge before it is made
  re-export  write a merge again with other strengths, rank or precision, in a moment
  explain    what a merge did, in words and by block
  compare    draw a merge beside what it was made of
  scan       which LoRAs go together, before any is merged
  matrix     every subject merged with every style
  resize     write one LoRA at another rank or precision
  rename     give a merge another name, with all that lies beside it
  remove     delete a merge with all that was written beside it
  inspect    show what is in a LoRA file, or where two of them overlap
  self-test  whether a checkpoint can be merged against on this machine
  serve      the same as a page in the browser
"""

MERGE_DESCRIPTION = """\
Merge a subject LoRA and a style LoRA of SDXL into one ordinary LoRA file, which draws
that subject in that style as <lora:name:1>. For every column of every layer a coefficient
is learnt against the checkpoint, so that the LoRAs disturb each other least. More than two,
two subjects, two styles: give each as --subject or --style.
"""

MERGE_EPILOG = """\
example, with the small model that comes with the source (128 x 128 pixels, about a minute):

  python -m lib_ziplora merge \\
      benchmarks/minixl/loras/minixl_subject_rocket.safetensors \\
      benchmarks/minixl/loras/minixl_style_streamline-cyber-color.safetensors \\
      --checkpoint benchmarks/minixl/model \\
      --subject-prompt "a sks icon" --style-prompt "a bell icon in szn style" \\
      -o rocket-cyber.safetensors

the prompts are those that draw the subject and the style on their own, trigger words
included; without them the LoRA's own metadata is asked. --method direct writes the plain
weighted sum in a second and needs no checkpoint: a baseline to compare with.

more than two: the prompts, weights and pictures belong to the subjects and styles in their
order, "" is a prompt left out.

  python -m lib_ziplora merge --checkpoint sd_xl_base_1.0/ -o pets-in-ink.safetensors \\
      --subject dog.safetensors --subject-prompt "a sks dog" \\
      --subject cat.safetensors --subject-prompt "a zwx cat" \\
      --style ink.safetensors --style-prompt "a house in szn style"

beside OUT.safetensors lies OUT.ziplora with what was learnt: re-export reads it.

exit codes: 0 done; 1 it can't be done, and why; 2 wrong command; 130 interrupted (Ctrl+C),
nothing written.
"""

REEXPORT_DESCRIPTION = """\
Write a merge again, with other strengths, another rank or precision, or in parts. It needs
the coefficients that the merge has left beside its file (NAME.ziplora) and the LoRAs that it
was made of; nothing is learnt again, so it takes a moment and needs no checkpoint.
"""

REEXPORT_EPILOG = """\
example, after the example of merge:

  python -m lib_ziplora re-export rocket-cyber.safetensors --style-weight 0.6 --rank 8 \\
      -o rocket-cyber-light.safetensors

the weights multiply what each LoRA brings to the merge: 1 is as it was merged. of several
subjects or styles each has its own, in the order of the merge. a LoRA that was renamed or
moved since is found by its content in the --lora-dir folders.
"""

INSPECT_EPILOG = """\
example:
  python -m lib_ziplora inspect subject.safetensors style.safetensors

the overlap of a layer is the mean |cosine| between the same columns of the two LoRAs'
delta weights: 0 when they use different columns, 1 when they pull in the same direction.
"""

INSPECT_DESCRIPTION = "Show what is in a LoRA file, or where two overlap."

SERVE_DESCRIPTION = "Serve the tab as a page in the browser, from this machine alone."

SERVE_EPILOG = """\
example:
  python -m lib_ziplora serve --checkpoint benchmarks/minixl/model --lora-dir benchmarks/minixl/loras
"""

SELF_TEST_DESCRIPTION = """\
One forward and one backward pass of the checkpoint's UNet at 64 x 64 pixels: whether gradients
reach every layer, and whether the weights stay as they are. The paragraph belongs into a bug report.
"""

SELF_TEST_EPILOG = """\
example:
  python -m lib_ziplora self-test --checkpoint benchmarks/minixl/model

exit codes: 0 passed; 1 failed, and why.
"""

COMPARE_DESCRIPTION = """\
Draw one sheet of pictures with the same seeds: each LoRA alone, their plain sum and the merge,
for the prompts that it was made with or for those that are given. It needs the coefficients
that the merge has left beside its file (NAME.ziplora) and the LoRAs that it was made of.
"""

COMPARE_EPILOG = """\
example, after the example of merge:

  python -m lib_ziplora compare rocket-cyber.safetensors --checkpoint benchmarks/minixl/model \\
      --lora-dir benchmarks/minixl/loras --seeds 2 --guidance-scale 3.5 -o rocket-cyber.png

interrupted (Ctrl+C), it writes the pictures that are finished.
"""

MATRIX_DESCRIPTION = """\
Merge every subject with every style, one after the other, with the same settings. One that
fails doesn't stop the others; merges that exist already are left out, unless --force. Ctrl+C
stops; what is finished stays.
"""

MATRIX_EPILOG = """\
example:

  python -m lib_ziplora matrix --checkpoint sd_xl_base_1.0/ --lora-dir loras/ \\
      --subject dog --subject cat --style ink --style clay -o "{subject}_{style}" --sheet pets.png

prompts and weights belong to the subjects and styles in their order; without a prompt the
LoRA's own metadata is asked. without --combined-prompt each pair gets one of its own, made of
its two prompts.

on several machines: the same command with --shard 1/4, 2/4, 3/4 and 4/4, then once with
--collect --sheet FILE.png (docs/matrix.md has SLURM and Ray).

exit codes: 0 done; 1 some pairs could not be merged, or are not there to collect; 2 wrong command; 130 interrupted.
"""

CHECK_DESCRIPTION = """\
Preflight of a merge: problems, layers, overlap, memory, time and the size of the
file. It takes the arguments of merge, so write check instead of merge; nothing is written,
and no model is loaded.
"""

EXPLAIN_DESCRIPTION = """\
Tell what a merge did, from the coefficients that it has left beside its file (NAME.ziplora):
in words, and how much of each LoRA is left in every block.
"""

REMOVE_DESCRIPTION = """\
Delete a merge and what was written with it: coefficients, report, card, preview, parts. Only
what ZipLoRA has written goes, and only beside a merge whose coefficients (NAME.ziplora) fit it.
"""

RENAME_DESCRIPTION = """\
Give a merge another name, and all that lies beside it: coefficients, report, card, preview,
parts. OUT is a name for the first --lora-dir, or OUT.safetensors.
"""

SCAN_DESCRIPTION = """\
Which LoRAs go together? Measure how much every subject and every style pull on the same columns,
the best pairs first. It needs no checkpoint and no GPU, and a second or two a pair.
"""

SCAN_EPILOG = """\
example:

  python -m lib_ziplora scan --subjects benchmarks/minixl/loras/minixl_subject_turtle.safetensors \
      --styles benchmarks/minixl/loras

printed are the overlap (the mean |cosine| of the same columns), how many times that of chance it
is, the pair, and what that means. A folder stands for every LoRA in it that can be merged and is
no merge; without --styles those of the --lora-dir folders are taken.
"""

RESIZE_DESCRIPTION = """\
Write one LoRA again at another rank or precision, in kohya's names whatever its own are, and
tell the error that it costs, of every layer's delta weight, rounding included. Training tags and
trigger words in its metadata stay. LoHa, LoKr and full differences become low-rank.
"""

RESIZE_EPILOG = """\
example:

  python -m lib_ziplora resize benchmarks/minixl/loras/minixl_style_fluent-emoji.safetensors \
      --rank 4 --precision bf16 -o small.safetensors
"""

CHECK_EPILOG = """\
example:

  python -m lib_ziplora check subject.safetensors style.safetensors -o both.safetensors \\
      --checkpoint sd_xl_base_1.0/

exit codes: 0 ready to merge; 1 not, and why.
"""

EXPLAIN_EPILOG = """\
example, after the example of merge:

  python -m lib_ziplora explain rocket-cyber.safetensors -o rocket-cyber.html
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line; the flags of a request are made from its options."""
    form = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python -m lib_ziplora", description=DESCRIPTION, formatter_class=form)
    top.add_argument("--version", action="version", version=__version__)
    names = top.add_subparsers(
        dest="command",
        required=True,
        metavar="{merge,check,re-export,explain,compare,scan,matrix,resize,rename,remove,inspect,self-test,serve}",
    )

    def command(
        name: str,
        description: str,
        epilog: str,
        run: Callable[..., int],
        request: type | None = None,
        request_from: Callable[[argparse.Namespace], object] | None = None,
    ) -> argparse.ArgumentParser:
        one = names.add_parser(name, description=description, epilog=epilog, formatter_class=form)
        if name in ("merge", "check"):
            _add_files(one)
        if request is not None:
            add_options(one, request)
        if name not in ("inspect",):
            _add_host(one)
        one.set_defaults(run=run, request_from=request_from)
        return one

    merge = command("merge", MERGE_DESCRIPTION, MERGE_EPILOG, commands.merge, MergeRequest, merge_from)
    check = command("check", CHECK_DESCRIPTION, CHECK_EPILOG, commands.check, MergeRequest, merge_from)
    again = command(
        "re-export",
        REEXPORT_DESCRIPTION,
        REEXPORT_EPILOG,
        commands.merge,
        ReexportRequest,
        partial(from_arguments, ReexportRequest),
    )
    explain = command("explain", EXPLAIN_DESCRIPTION, EXPLAIN_EPILOG, commands.explain)
    compare = command(
        "compare",
        COMPARE_DESCRIPTION,
        COMPARE_EPILOG,
        commands.compare,
        CompareRequest,
        partial(from_arguments, CompareRequest),
    )
    scan = command("scan", SCAN_DESCRIPTION, SCAN_EPILOG, commands.scan)
    matrix = command("matrix", MATRIX_DESCRIPTION, MATRIX_EPILOG, commands.matrix, MatrixRequest, matrix_from)
    inspect = command("inspect", INSPECT_DESCRIPTION, INSPECT_EPILOG, commands.inspect)
    command(
        "resize",
        RESIZE_DESCRIPTION,
        RESIZE_EPILOG,
        commands.resize,
        ResizeRequest,
        partial(from_arguments, ResizeRequest),
    )
    rename = command("rename", RENAME_DESCRIPTION, "", commands.rename)
    remove = command("remove", REMOVE_DESCRIPTION, "", commands.remove)
    command("self-test", SELF_TEST_DESCRIPTION, SELF_TEST_EPILOG, commands.self_test)
    _add_serve(command("serve", SERVE_DESCRIPTION, SERVE_EPILOG, commands.serve))
    for one in (merge, again, matrix):
        one.add_argument(
            "--report", dest="figures", type=Path, metavar="FILE.json", help="write the figures as JSON"
        )
    for role in ROLES:
        meaning = f"{role} LoRAs: files, names in a --lora-dir, or folders of them"
        needed = role == "subject"
        scan.add_argument(f"--{role}s", nargs="+", default=[], required=needed, metavar="LORA", help=meaning)
    for one in (check, explain, inspect, scan):
        one.add_argument("--json", action="store_true", help="print JSON instead of text")
    inspect.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="one LoRA file, or two to compare"
    )
    inspect.add_argument("--layers", action="store_true", help="list every layer (one file)")
    for one in (explain, rename, remove):
        one.add_argument("merged", metavar="MERGED", help="merged LoRA file or its .ziplora, or its name")
    rename.add_argument("output", metavar="OUT", help="the new name")
    _add_output(explain, "FILE.html", "write it as a page too", required=False)
    _add_output(compare, "SHEET.png", "the sheet", required=True)
    compare.add_argument("--pictures", type=Path, metavar="DIR", help="save every picture there too")
    matrix.add_argument("--sheet", type=Path, metavar="FILE.png", help="draw every merge, all on one sheet")
    return top


def _add_files(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "files",
        nargs="*",
        metavar="SUBJECT STYLE",
        help="LoRA files (or names in a --lora-dir) of a subject and a style; the same as --subject and --style",
    )


def _add_output(one: argparse.ArgumentParser, name: str, meaning: str, *, required: bool) -> None:
    one.add_argument("-o", "--output", type=Path, required=required, metavar=name, help=meaning)
    one.add_argument("--force", action="store_true", help=f"replace {name} if it is there")


def _add_serve(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--host", default="127.0.0.1", help="network interface (default %(default)s: this machine only)"
    )
    one.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    one.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name that the page is opened by, in a network or through a proxy (may be repeated)",
    )
    one.add_argument(
        "--api", action="store_true", help="answer the REST API too, at /ziplora/v1 (see docs/api.md)"
    )
    one.add_argument(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="where Compare saves what it draws (default: ziplora-pictures in the first --lora-dir)",
    )
    one.add_argument(
        "--merges-folder",
        default="",
        metavar="NAME",
        help="subfolder of the first --lora-dir that suggested names begin with",
    )
    one.add_argument("--open", action="store_true", help="open the page in the default browser")


def _add_host(one: argparse.ArgumentParser) -> None:
    group = one.add_argument_group("checkpoint and LoRAs")
    group.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR_OR_FILE",
        help="SDXL checkpoint: a diffusers folder or a .safetensors file",
    )
    group.add_argument(
        "--checkpoint-config",
        type=Path,
        metavar="DIR",
        help="diffusers folder whose configuration files describe a .safetensors checkpoint "
        "(default: SDXL's own)",
    )
    group.add_argument(
        "--lora-dir",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder with LoRAs, so that they can be given by name (may be repeated)",
    )
    group.add_argument("--device", default="auto", help="auto, cuda, mps, cpu, cuda:1, ... (default auto)")
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "fp16", "bf16", "fp32"),
        help="auto: fp16 on CUDA, else fp32",
    )
