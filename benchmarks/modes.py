"""Held-out error of every method on MiniXL's pairs: ``python -m benchmarks.modes``.

The error is ``MergeReport.heldout_loss_end``: how far the merge is from what each LoRA does
alone, on samples that it has not learnt from. It is no judgement of pictures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path

from lib_ziplora import job
from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.hosts.standalone import StandaloneHost

MINIXL = Path(__file__).resolve().parent / "minixl"
SUBJECTS, STYLES = ("turtle", "crown"), ("fluent-emoji", "emojione-monotone")
MODES = {
    "instant": {"method": "instant"},
    "ziplora, 20 updates": {"steps": 20},
    "ziplora, 100 updates": {},
    "closed form + 20 updates": {"start": "closed-form", "steps": 20},
    "closed form + 100 updates": {"start": "closed-form"},
    "paper's objective": {"objective": "paper", "similarity_lambda": 0.01},
}


def merge(host: StandaloneHost, subject: str, style: str, mode: str, folder: Path) -> job.MergeReport:
    """One merge of a MiniXL pair under a mode of ``MODES``."""
    request = MergeRequest.pair(
        LoraInput(f"minixl_subject_{subject}", "a sks emoji"),
        LoraInput(f"minixl_style_{style}", "a cat emoji in szn style"),
        str(folder / "merged.safetensors"),
        overwrite=True,
        settings=MergeSettings(**MODES[mode]),
    )
    return job.run(request, host)


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.modes", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the reports")
    args = parser.parse_args()
    host = StandaloneHost(MINIXL / "model", [MINIXL / "loras"])
    reports = []
    print(f"{'pair':28} {'mode':26} {'error':>13} {'travel':>7} {'similarity':>10} {'seconds':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for subject, style, mode in itertools.product(SUBJECTS, STYLES, MODES):
            report = merge(host, subject, style, mode, Path(folder))
            reports.append({"subject": subject, "style": style, "mode": mode, **report.to_json()})
            print(
                f"{subject + ' x ' + style:28} {mode:26} {report.heldout_loss_start:5.2f} -> "
                f"{report.heldout_loss_end:4.2f} {report.mean_travel:7.3f} {report.similarity_end:10.3f} "
                f"{report.seconds:8.1f}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(reports, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
