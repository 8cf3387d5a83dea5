"""The diffusers host's side of the comparison, run under another Python: see test_a1111_diffusers.py.

python -m tests.hosts.a1111_reference MODEL_FOLDER LORA_FOLDER OUT_FOLDER JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.hosts import Host
from lib_ziplora.lora.formats.keys import canonical_modules
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.pipeline.merge import run
from lib_ziplora.ziplora.hooks import adapters, lora_hooks


def predictions(host: Host, given: dict[str, torch.Tensor], asked: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Predictions of the base and with each of the files, and the conditioning, of any host."""
    results = {}
    with host.open() as session, torch.no_grad():
        modules = canonical_modules(session.denoiser.unet)
        size = {"width": asked["width"], "height": asked["height"]}
        cond = session.encode_prompts(asked["prompts"], **size, negative=False, deltas={})
        results["context"] = cond.context.contiguous()
        for name, file in asked["files"].items():
            layers = read_lora(file).unet_layers() if file else {}
            branches = adapters(layers, "cpu", torch.float32)
            with lora_hooks(modules, branches):
                results[name] = session.denoiser.predict(given["x_t"], given["t"], cond)
        alphas = session.denoiser.alphas_cumprod
        results["alphas_cumprod"] = alphas.clone()
    return results


def request(output: str, asked: dict[str, Any]) -> MergeRequest:
    """A short ZipLoRA merge of the pair."""
    subject, style = (LoraInput(name, prompt) for name, prompt in asked["pair"].items())
    settings = MergeSettings(**asked["settings"])
    return MergeRequest.pair(subject, style, output, overwrite=True, settings=settings)


def main(model: str, loras: str, out: str, asked: dict[str, Any]) -> None:
    from lib_ziplora.hosts.standalone import StandaloneHost

    host = StandaloneHost(Path(model), [Path(loras)], device="cpu", dtype="fp32")
    folder = Path(out)
    save_file(
        predictions(host, load_file(str(folder / "given.safetensors")), asked),
        str(folder / "said.safetensors"),
    )
    run(request(str(folder / "merged_by_diffusers.safetensors"), asked), host)


if __name__ == "__main__":
    main(*sys.argv[1:4], json.loads(sys.argv[4]))
