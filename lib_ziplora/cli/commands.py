"""What the subcommands do, once their arguments are known to be well formed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from ..config import MergeRequest
from ..errors import ConfigError, OutputError
from ..hosts.standalone import SUFFIX, StandaloneHost
from ..library import overview
from ..library.card import card_path, with_card
from ..library.json_store import data_folder
from ..library.timing import Pace
from ..pipeline import merge as pipeline
from ..pipeline import reexport as reexporting
from ..pipeline.reexport import ReexportRequest
from ..report.document import document
from ..report.report import MergeReport
from . import compare, looking, matrix
from .terminal import ProgressBar, ctrl_c_interrupts

OK, FAILED = 0, 1
STOPPING_SECONDS = 60.0
PICTURES = "ziplora-pictures"


def merge(args: argparse.Namespace) -> int:
    """``merge``: run the job and print where the file is."""
    request: MergeRequest = args.request

    def run(host: StandaloneHost, bar: ProgressBar) -> MergeReport:
        report = pipeline.run(request, host, bar)
        Pace(data_folder(host)).note(request, report)
        return report

    return _write(args, run)


def reexport(args: argparse.Namespace) -> int:
    """``re-export``: write a merge again and print where the file is."""
    request: ReexportRequest = args.request
    return _write(args, lambda host, bar: reexporting.reexport(request, host, bar))


def check(args: argparse.Namespace) -> int:
    """``check``: print what can be told of a merge beforehand."""
    return OK if looking.show_check(args.request, _host(args), as_json=args.json) else FAILED


def explain(args: argparse.Namespace) -> int:
    """``explain``: print what a merge did."""
    found = document(_host(args), args.merged)
    looking.show_explanation(found, args.output, replace=args.force, as_json=args.json)
    return OK


def run_compare(args: argparse.Namespace) -> int:
    """``compare``: draw a merge beside what it was made of."""
    compare.run(args, _host(args, pictures=args.pictures))
    return OK


def run_matrix(args: argparse.Namespace) -> int:
    """``matrix``: merge every subject with every style."""
    if args.report:
        _check_report(args.report)
    return matrix.run(args, _host(args))


def _write(args: argparse.Namespace, run: Callable[[StandaloneHost, ProgressBar], MergeReport]) -> int:
    host = _host(args)
    if args.report:
        _check_report(args.report)
        if args.card:
            _require_no_card(args.report, host.output_path(args.output))
    bar = ProgressBar()
    try:
        with host.exclusive(), ctrl_c_interrupts(host):
            report = run(host, bar)
        if args.card:
            report = with_card(report, host)
    finally:
        bar.close()
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(report.output)
    print(f"{report.tag}  rank {report.rank}, {report.common_layers} common layers, {report.seconds:.0f} s")
    if report.heldout_loss_start is not None and report.heldout_loss_end is not None:
        which = "both LoRAs" if len(report.single_layers) == 2 else f"the {len(report.single_layers)} LoRAs"
        print(
            f"travel {report.mean_travel:.3f}, error against {which} "
            f"{report.heldout_loss_start:.3f} (plain sum) -> {report.heldout_loss_end:.3f}"
        )
    if args.report:
        _write_report(args.report, report)
    return OK


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
    if args.checkpoint:
        host.check()
    try:
        from .. import api
        from ..ui.serve import serve as serve_tab
    except ImportError as error:
        raise ConfigError(f"The page needs gradio ({error}): pip install -r requirements/serve.txt") from error
    queues: list[api.JobQueue] = []

    def ready(url: str) -> None:
        print(f"The ZipLoRA tab is at {url}", flush=True)
        if args.api:
            print(f"The API is at {url.rstrip('/')}{api.PREFIX}", flush=True)

    try:
        serve_tab(
            host,
            address=args.host,
            port=args.port,
            names=args.allow_host,
            open_browser=args.open,
            on_ready=ready,
            extend=(lambda app: queues.append(api.add_routes(app, host))) if args.api else None,
        )
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"Can't listen on {args.host}:{args.port or 7860} ({error}); choose another --port."
        ) from error
    finally:
        for queue in queues:
            queue.stop(timeout=STOPPING_SECONDS)
    return OK


def _check_report(path: Path) -> None:
    """Find out before the merge whether the report can be written, and that it replaces no LoRA."""
    if path.suffix == SUFFIX:
        raise OutputError(f"The report {path} would be named like a LoRA; give it a name that ends in .json.")
    if not path.parent.is_dir():
        raise OutputError(f"The folder {path.parent} of the report does not exist; create it first.")
    try:
        new = not path.exists()
        path.open("a").close()
        if new:
            path.unlink()
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


def _write_report(path: Path, report: MergeReport) -> None:
    try:
        path.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"The LoRA {report.output} is written, but its report {path} is not ({error.strerror})."
        ) from error


def _host(args: argparse.Namespace, *, strict: bool = False, pictures: Path | None = None) -> StandaloneHost:
    given = (args.checkpoint, args.lora_dir, args.device, args.dtype)
    return StandaloneHost(*given, config=args.checkpoint_config, strict=strict, pictures=pictures)
