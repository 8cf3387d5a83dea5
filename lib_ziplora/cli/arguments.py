"""The arguments of the command line and the help that explains them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import ROLES, Option, Role, setting_defaults, setting_fields
from . import commands, compare, looking, matrix

DESCRIPTION = """\
ZipLoRA for Stable Diffusion XL: merge subject LoRAs and style LoRAs into one file.

  merge      learn how the LoRAs fit together and write one
  check      what can be told of a merge beforehand, and what speaks against it
  re-export  write a merge again with other strengths, rank or precision, in a moment
  explain    what a merge did, in words and by block
  compare    draw a merge beside what it was made of
  matrix     every subject merged with every style
  inspect    show what is in a LoRA file, or where two of them overlap
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
      benchmarks/minixl/loras/minixl_subject_turtle.safetensors \\
      benchmarks/minixl/loras/minixl_style_fluent-emoji.safetensors \\
      --checkpoint benchmarks/minixl/model \\
      --subject-prompt "a sks emoji" --style-prompt "a cat emoji in szn style" \\
      -o turtle-fluent.safetensors

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

  python -m lib_ziplora re-export turtle-fluent.safetensors --style-weight 0.6 --rank 8 \\
      -o turtle-fluent-light.safetensors

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


def parser() -> argparse.ArgumentParser:
    """The whole command line; settings come from ``config.setting_fields``."""
    form = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python -m lib_ziplora", description=DESCRIPTION, formatter_class=form)
    top.add_argument("--version", action="version", version=__version__)
    names = top.add_subparsers(
        dest="command", required=True, metavar="{merge,check,re-export,explain,compare,matrix,inspect,serve}"
    )

    def command(name: str, description: str, epilog: str, run: Callable[..., int]) -> argparse.ArgumentParser:
        one = names.add_parser(name, description=description, epilog=epilog, formatter_class=form)
        one.set_defaults(run=run)
        return one

    one = command("merge", MERGE_DESCRIPTION, MERGE_EPILOG, commands.merge)
    _add_merge(one)
    _add_card(one)
    one = command("check", looking.DESCRIPTIONS["check"], looking.EPILOGS["check"], commands.check)
    _add_merge(one)
    one.add_argument("--json", action="store_true", help="print JSON instead of text")
    _add_reexport(command("re-export", REEXPORT_DESCRIPTION, REEXPORT_EPILOG, commands.reexport))
    one = command("explain", looking.DESCRIPTIONS["explain"], looking.EPILOGS["explain"], commands.explain)
    looking.add_explain(one)
    _add_host(one)
    one = command("compare", compare.DESCRIPTION, compare.EPILOG, commands.run_compare)
    compare.add_arguments(one)
    _add_host(one)
    one = command("matrix", matrix.DESCRIPTION, matrix.EPILOG, commands.run_matrix)
    matrix.add_output(one)
    _add_card(one)
    _add_loras_and_settings(one)
    _add_inspect(command("inspect", INSPECT_DESCRIPTION, INSPECT_EPILOG, commands.inspect))
    _add_serve(command("serve", SERVE_DESCRIPTION, SERVE_EPILOG, commands.serve))
    return top


def _add_inspect(one: argparse.ArgumentParser) -> None:
    one.add_argument("files", nargs="+", type=Path, metavar="FILE", help="one LoRA file, or two to compare")
    one.add_argument("--layers", action="store_true", help="list every layer (one file)")
    one.add_argument("--json", action="store_true", help="print JSON instead of text")


def _add_serve(one: argparse.ArgumentParser) -> None:
    _add_host(one)
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
        "(default: SDXL's, if the Hugging Face cache has it; nothing is downloaded)",
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


def _add_merge(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "files",
        nargs="*",
        metavar="SUBJECT STYLE",
        help="LoRA files (or names in a --lora-dir) of a subject and a style; the same as --subject and --style",
    )
    _add_output(one)
    _add_loras_and_settings(one)


def _add_loras_and_settings(one: argparse.ArgumentParser) -> None:
    _add_report_beside(one)
    _add_host(one)
    inputs = one.add_argument_group("subjects and styles")
    for role in ROLES:
        inputs.add_argument(
            f"--{role}",
            action="append",
            default=[],
            metavar="LORA",
            help=f"LoRA of a {role}: a file, or a name in a --lora-dir (may be repeated)",
        )
        inputs.add_argument(
            f"--{role}-prompt",
            action="append",
            default=[],
            metavar="TEXT",
            help=f"prompt that draws the {role} (repeated: one for each, in order)",
        )
        _add_weight(inputs, role, f"strength of the {role} (default 1; repeated: one for each, in order)")
        inputs.add_argument(
            f"--{role}-images",
            action="append",
            nargs="+",
            default=[],
            metavar="IMAGE",
            help=f"pictures of the {role} to learn from, instead of what its LoRA draws (none are needed)",
        )
    groups = {False: one.add_argument_group("settings"), True: one.add_argument_group("advanced settings")}
    for name, option in setting_fields().items():
        _add_setting(groups[option.advanced], name, option)


def _add_reexport(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "source", metavar="MERGED", help="merged LoRA file or its .ziplora (or its name in a --lora-dir)"
    )
    _add_output(one)
    _add_card(one)
    _add_report_beside(one)
    _add_host(one)
    group = one.add_argument_group("what is to be different")
    for role in ROLES:
        _add_weight(group, role, f"multiplies what the {role} brings (default 1: as merged; may be repeated)")
    options = setting_fields()
    group.add_argument(
        "--rank", default="", metavar="STR", help=f"{options['rank'].help} (default: as merged)"
    )
    group.add_argument(
        "--precision",
        default="",
        choices=options["precision"].choices,
        help=f"{options['precision'].help} (default: as merged)",
    )
    group.add_argument("--split", action="store_true", help=options["split"].help)


def _add_output(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="OUT.safetensors, or a name for the first --lora-dir",
    )
    one.add_argument("--force", action="store_true", help="replace OUT if it is there")
    one.add_argument("--report", type=Path, metavar="FILE.json", help="write the figures of the merge")


def _add_card(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--no-card",
        dest="card",
        action="store_false",
        help="leave the card as it is: OUT.json, which gives the LoRA pane an activation text, a description and "
        "notes",
    )


def _add_report_beside(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--report-beside",
        action="store_true",
        help="write what the merge did beside it, as OUT.report.html and OUT.report.json",
    )


def _add_weight(group: Any, role: Role, meaning: str) -> None:
    group.add_argument(f"--{role}-weight", action="append", type=float, default=[], metavar="W", help=meaning)


def _add_setting(group: Any, name: str, option: Option) -> None:
    default = setting_defaults()[name]
    if isinstance(default, bool):
        group.add_argument(
            f"--{name.replace('_', '-')}", action="store_true", help=f"{option.help} (default {default})"
        )
        return
    allowed = "" if option.minimum is None else f"{option.minimum:g} to {option.maximum:g}, "
    group.add_argument(
        f"--{name.replace('_', '-')}",
        type=type(default),
        choices=option.choices or None,
        default=default,
        metavar=None if option.choices else type(default).__name__.upper(),
        help=f"{option.help} ({allowed}default {default if default != '' else 'none'})".replace("%", "%%"),
    )
