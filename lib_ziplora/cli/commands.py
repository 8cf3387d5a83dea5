"""Subcommands of the command line, run once their arguments are known to be well formed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from ..errors import ConfigError, Interrupted, OutputError, ZipLoraError
from ..hosts.standalone import SUFFIX, StandaloneHost
from ..jobs.queue import Job
from ..jobs.requests import Pictures, Prepared
from ..jobs.service import Service
from ..library import overview
from ..library.card import card_path
from ..library.catalog import catalog
from ..lora.io.atomic import atomic_text, atomic_write, probe
from ..names import validate_output
from ..pictures.compare import save_sheet
from ..pictures.comparison import Comparison
from ..pictures.matrix_sheet import Sheet
from ..pipeline.matrix import PreparedMatrix
from ..pipeline.prepare import PreparedMerge
from ..pipeline.resize import resize as run_resize
from ..pipeline.scan import ScanRequest
from ..pipeline.scan import scan as run_scan
from ..report.document import Document, document
from ..report.html import page
from . import text
from .terminal import Interrupts, ProgressBar

OK, FAILED, INTERRUPTED = 0, 1, 130
STOPPING_SECONDS = 60.0
PICTURES = "ziplora-pictures"


def merge(args: argparse.Namespace) -> int:
    """``merge`` and ``re-export``: write the LoRA and print where it is."""
    if args.figures:
        _check_report(args.figures, args.request.overwrite)
    job = _run(args, _host(args))
    report = job.report
    if report is None:
        raise _problem(job)
    _warn(report.warnings)
    print(report.output)
    print(f"{report.tag}  rank {report.rank}, {report.common_layers} common layers, {report.seconds:.0f} s")
    learnt = report.learnt
    if learnt.heldout_loss_start is not None and learnt.heldout_loss_end is not None:
        which = "both LoRAs" if len(report.single_layers) == 2 else f"the {len(report.single_layers)} LoRAs"
        print(
            f"travel {learnt.mean_travel:.3f}, error against {which} "
            f"{learnt.heldout_loss_start:.3f} (plain sum) -> {learnt.heldout_loss_end:.3f}"
        )
    if args.figures:
        sentence = f"The LoRA {report.output} is written, but its report"
        _write_json(args.figures, report.to_json(), sentence, args.request.overwrite)
    return OK


def matrix(args: argparse.Namespace) -> int:
    """``matrix``: merge every subject with every style, and print how each pair has ended."""
    if args.figures:
        _check_report(args.figures, args.request.overwrite)
    job = _run(args, _host(args))
    cells = job.result.pairs
    if isinstance(job.result.drawn, Sheet):
        _save_sheet(job.result.drawn, args.sheet, args.request.overwrite)
    _warn_of(job.result.pictures)
    for cell in cells:
        told = f"{cell.seconds:.0f} s" if cell.state == "done" else cell.sentence
        print(f"{cell.request.output}: {cell.state}, {told}")
        for warning in cell.report.warnings if cell.report else ():
            print(f"  warning: {warning}")
    if args.figures:
        _write_json(args.figures, [cell.to_json() for cell in cells], "The report", args.request.overwrite)
    if job.state == "interrupted":
        raise Interrupted(job.error)
    bad = ("refused", "failed", "left") if args.request.collect else ("refused", "failed")
    return FAILED if any(cell.state in bad for cell in cells) else OK


def compare(args: argparse.Namespace) -> int:
    """``compare``: draw a merge beside what it was made of, and print where the sheet is."""
    _check_sheet(args.output, args.force)
    job = _run(args, _host(args, pictures=args.pictures))
    pictures, drawn = job.result.pictures, job.result.drawn
    if pictures is None or not isinstance(drawn, Comparison):
        raise _problem(job)
    save_sheet(drawn, args.output, args.force)
    print(args.output)
    if pictures.preview:
        print(pictures.preview)
    _warn_of(pictures)
    return INTERRUPTED if job.state == "interrupted" else OK


def check(args: argparse.Namespace) -> int:
    """``check``: print what can be told of a merge beforehand."""
    found = Service(_host(args)).preflight(args.request)
    print(json.dumps(found.to_json(), indent=2) if args.json else "\n".join(text.check_text(found)))
    return FAILED if found.problems else OK


def scan(args: argparse.Namespace) -> int:
    """``scan``: print which subjects and styles go together, the best first."""
    asked = [[name for given in names for name in _named(given)] for names in (args.subjects, args.styles)]
    found = run_scan(ScanRequest(*map(tuple, asked)), _host(args))
    print(json.dumps(found.to_json(), indent=2) if args.json else "\n".join(text.scan_text(found)))
    return OK


def _named(given: str) -> list[str]:
    """A LoRA, or every one in a folder that can be merged."""
    if not Path(given).is_dir():
        return [given]
    return [
        str(one.path) for one in catalog(StandaloneHost(None, [Path(given)])) if one.usable and not one.merged
    ]


def explain(args: argparse.Namespace) -> int:
    """``explain``: print what a merge did, and write its page where asked for."""
    found = document(_host(args), args.merged)
    if args.output:
        _write_page(args.output, found, args.force)
    print(json.dumps(found.to_json(), indent=2) if args.json else "\n".join(text.explain_text(found)))
    return OK


def resize(args: argparse.Namespace) -> int:
    """``resize``: write one LoRA at another rank or precision, and print what that costs."""
    done = run_resize(args.request, _host(args))
    _warn(done.remarks)
    print(done.output)
    ranks, sizes = (
        " -> ".join(map(str, pair)) for pair in (done.ranks, [f"{size / 1e6:.1f}" for size in done.sizes])
    )
    print(f"rank {ranks}, {sizes} MB")
    print(
        f"error {done.error:.2%} in all; of a layer {done.mean_error:.2%} on average, "
        f"{done.worst_error:.2%} at most ({done.worst})"
    )
    return OK


def remove(args: argparse.Namespace) -> int:
    """``remove``: delete a merge with what was written beside it, and print each file."""
    files = Service(_host(args)).remove(args.merged)
    print(*files.written, sep="\n")
    _warn(f"{path} is not from ZipLoRA and stays." for path in files.own)
    return OK


def rename(args: argparse.Namespace) -> int:
    """``rename``: give a merge and what was written beside it another name, and print each file."""
    files = Service(_host(args)).rename(args.merged, args.output)
    print(*files.written, *files.own, sep="\n")
    return OK


def self_test(args: argparse.Namespace) -> int:
    """``self-test``: print whether the checkpoint can be merged against here."""
    found = Service(_host(args)).self_test()
    print(found.paragraph)
    return FAILED if found.problem else OK


def _run(args: argparse.Namespace, host: StandaloneHost) -> Job:
    """Submit what the arguments ask for and run it here, with a progress bar."""
    service, bar = Service(host), ProgressBar()
    job = service.submit(args.request, background=False)
    _before(args, job.prepared)
    try:
        with host.exclusive(), args.interrupts.asking(service, job):
            service.run(job, bar)
    finally:
        bar.close()
    return job


def _before(args: argparse.Namespace, prepared: Prepared) -> None:
    """What is known before the work begins: pairs that are refused, a report where the card goes, what to write."""
    interrupts: Interrupts = args.interrupts
    if isinstance(prepared, PreparedMerge):
        interrupts.watch(prepared.output, prepared.sidecar, *prepared.parts)
        if args.figures and prepared.request.card:
            _require_no_card(args.figures, prepared.output)
    elif isinstance(prepared, PreparedMatrix):
        interrupts.watch(*(cell.prepared.output for cell in prepared.cells if cell.prepared))
        _warn(f"{one.request.output}: {one.sentence}" for one in prepared.cells if one.state == "refused")


def _problem(job: Job) -> ZipLoraError:
    return Interrupted(job.error) if job.state == "interrupted" else ZipLoraError(job.error)


def _warn(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        print(f"warning: {sentence}", file=sys.stderr)


def _warn_of(pictures: Pictures | None) -> None:
    _warn(pictures.remarks if pictures else ())


def _save_sheet(sheet: Sheet, file: Path, replace: bool) -> None:
    """The sheet as a file; the merges stay, whatever becomes of it."""
    from PIL.Image import registered_extensions

    try:
        with atomic_write(file, replace) as temporary:
            sheet.image.save(temporary, registered_extensions()[file.suffix.lower()])
    except (ZipLoraError, ValueError) as error:
        _warn([f"The sheet {file} was not written: {error}"])


def inspect(args: argparse.Namespace) -> int:
    """``inspect``: one file, or two and their overlap."""
    if len(args.files) == 1:
        summary = overview.describe_file(args.files[0], layers=args.layers)
        text = overview.file_text(summary)
    else:
        summary = overview.describe_pair(*args.files)
        text = overview.pair_text(summary)
    print(json.dumps(summary, indent=2) if args.json else text)
    return OK


def serve(args: argparse.Namespace) -> int:
    """``serve``: the tab as a page of its own."""
    folder = args.pictures or (args.lora_dir[0] / PICTURES if args.lora_dir else None)
    host = _host(args, strict=True, pictures=folder)
    if args.merges_folder:
        validate_output(f"{args.merges_folder}/name")
    if args.checkpoint:
        host.check()
    try:
        from .. import api
        from ..ui.serve import serve as serve_tab
    except ImportError as error:
        raise ConfigError(
            f"The page needs gradio ({error}): pip install -r requirements/serve.txt"
        ) from error
    service = Service(host)

    def ready(url: str) -> None:
        print(f"The ZipLoRA tab is at {url}", flush=True)
        if args.api:
            print(f"The API is at {url.rstrip('/')}{api.PREFIX}", flush=True)

    try:
        serve_tab(
            service,
            address=args.host,
            port=args.port,
            names=args.allow_host,
            open_browser=args.open,
            on_ready=ready,
            merges_folder=args.merges_folder,
            extend=(lambda app: api.add_routes(app, service)) if args.api else None,
        )
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"Can't listen on {args.host}:{args.port or 7860} ({error}); choose another --port."
        ) from error
    finally:
        service.stop(timeout=STOPPING_SECONDS)
    return OK


def _check_report(path: Path, replace: bool) -> None:
    """Find out before the merge whether the report can be written, and that it replaces nothing unasked."""
    if path.suffix == SUFFIX:
        raise OutputError(f"The report {path} would be named like a LoRA; give it a name that ends in .json.")
    if not path.parent.is_dir():
        raise OutputError(f"The folder {path.parent} of the report does not exist; create it first.")
    if os.path.lexists(path) and (path.is_dir() or not replace):
        raise OutputError(f"The report {path} exists already; give another name, or --force.")
    try:
        with probe(path) as temporary:
            temporary.open("xb").close()
    except OSError as error:
        raise OutputError(
            f"The report {path} can't be written ({error.strerror}); give another file."
        ) from error


def _require_no_card(path: Path, output: Path) -> None:
    """Refuse a report where the card of the merge goes."""
    if path.absolute() == card_path(output).absolute():
        raise OutputError(
            f"The report {path} would replace the card of {output.name}; give it another name, or --no-card."
        )


def _write_json(path: Path, found: object, sentence: str, replace: bool) -> None:
    try:
        atomic_text(path, json.dumps(found, indent=2) + "\n", replace)
    except OutputError as error:
        raise OutputError(f"{sentence} was not written: {error}") from error


def _check_sheet(path: Path, replace: bool) -> None:
    """Find out before anything is drawn whether the sheet can be written."""
    if path.suffix.lower() != ".png":
        raise OutputError(f"The sheet {path} must end in .png.")
    if not path.parent.is_dir():
        raise OutputError(f"The folder {path.parent} of the sheet does not exist; create it first.")
    if path.exists() and not replace:
        raise OutputError(f"{path} exists already. Give another name, or --force to replace it.")


def _write_page(file: Path, found: Document, replace: bool) -> None:
    if file.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"The page {file} needs a name that ends in .html.")
    if os.path.lexists(file) and not replace:
        raise OutputError(f"{file} exists already; give another name, or --force.")
    atomic_text(file, page(found), replace)
    print(f"Wrote {file}", file=sys.stderr)


def _host(args: argparse.Namespace, *, strict: bool = False, pictures: Path | None = None) -> StandaloneHost:
    given = (args.checkpoint, args.lora_dir, args.device, args.dtype)
    return StandaloneHost(*given, config=args.checkpoint_config, strict=strict, pictures=pictures)
