"""Drawing as the txt2img tab does: its processing, its samplers, ``<lora:…>`` tags in the prompt."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...errors import HostError, OutputError
from .. import Drawn, OnStep, Pen, Picture, Sampler
from . import loras

FIRST_SIZE = 512
"""Width and height in the txt2img tab before anybody has changed them; nothing for SDXL."""
UI_DEFAULTS = {
    "name": "customscript/sampler.py/txt2img/Sampling method/value",
    "steps": "customscript/sampler.py/txt2img/Sampling steps/value",
    "guidance_scale": "txt2img/CFG Scale/value",
    "width": "txt2img/Width/value",
    "height": "txt2img/Height/value",
    "negative_prompt": "txt2img/Negative prompt/value",
}
"""Field of ``Sampler`` -> where the WebUI's ``ui-config.json`` keeps what the txt2img tab begins with."""


def samplers() -> Sequence[str]:
    """The samplers that the WebUI offers, its default first."""
    from modules import sd_samplers

    return list(sd_samplers.visible_sampler_names())


def default_sampler() -> Sampler:
    """What the txt2img tab begins with, as far as the user has saved it (Settings > Defaults)."""
    saved = _ui_config()
    plain = Sampler()
    found: dict[str, Any] = {}
    for name, key in UI_DEFAULTS.items():
        value, kind = saved.get(key), type(getattr(plain, name))
        if isinstance(value, kind) or (kind is float and isinstance(value, int)):
            found[name] = kind(value)
    if found.get("name") not in samplers():
        found.pop("name", None)
    if (found.get("width"), found.get("height")) == (FIRST_SIZE, FIRST_SIZE):
        del found["width"], found["height"]
    return Sampler(**found)


def _ui_config() -> Mapping[str, Any]:
    from modules import shared

    try:
        data = json.loads(Path(shared.cmd_opts.ui_config_file).read_text(encoding="utf-8"))
    except (OSError, ValueError, AttributeError):
        return {}
    return data if isinstance(data, dict) else {}


def check() -> None:
    """Raise HostError when the WebUI can't apply a ``<lora:…>``."""
    if loras.extension() is None:
        raise HostError(
            "The WebUI's built-in Lora extension is switched off, without which <lora:…> draws nothing. "
            "Switch it on in Extensions > Installed, then Apply and restart UI."
        )


@contextmanager
def pen(sampler: Sampler, count: int, native: int) -> Iterator[Pen]:
    """A pen for so many pictures; afterwards random state and prompt history are what they were.

    Args:
        sampler: how to draw.
        count: pictures, for the WebUI's bar.
        native: width and height where none are given.

    Raises:
        HostError: there is no such sampler.
    """
    if sampler.name and sampler.name not in samplers():
        raise HostError(f"There is no sampler {sampler.name!r}; choose one of {', '.join(samplers())}.")
    gpus = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=gpus), _prompt_history_kept():
        yield WebuiPen(sampler, count, native)


@contextmanager
def _prompt_history_kept() -> Iterator[None]:
    """``params.txt``, from which the txt2img tab restores the last prompt, stays that of the user's picture."""
    from modules import shared

    before = shared.cmd_opts.no_prompt_history
    shared.cmd_opts.no_prompt_history = True
    try:
        yield
    finally:
        shared.cmd_opts.no_prompt_history = before


@dataclass
class WebuiPen:
    """``Pen`` over the WebUI's ``processing``; scripts and extensions of the txt2img tab take no part."""

    sampler: Sampler
    count: int
    native: int
    drawn: int = field(default=0, init=False)
    last: Any = field(default=None, init=False)

    @property
    def font(self) -> Path | None:
        """The font of the WebUI's own grids."""
        from modules import paths_internal, shared

        return Path(getattr(shared.opts, "font", "") or paths_internal.roboto_ttf_file)

    def draw(self, picture: Picture, on_step: OnStep) -> Drawn:
        """See ``Pen.draw``; the WebUI's own bar tells of the steps."""
        from modules import devices, processing, shared

        for name, _ in picture.loras:
            loras.require_tag(name)
        state = shared.state
        state.job_count, state.job_no, state.sampling_step = self.count, self.drawn, 0
        with closing(self._processing(picture)) as p:
            self.last = p
            try:
                processed = processing.process_images(p)
            except devices.NansException as error:
                raise HostError(str(error)) from error
            except OSError as error:
                raise OutputError(f"The WebUI can't save its pictures ({error}).") from error
        on_step()
        _require_worn(picture)
        if not processed.images:
            raise HostError("The WebUI has drawn no picture; its console says why.")
        self.drawn += 1
        image = processed.images[0]
        saved = getattr(image, "already_saved_as", None)
        return Drawn(image, processed.infotexts[0], Path(saved) if saved else None)

    def _processing(self, picture: Picture) -> Any:
        from modules import processing, scripts, shared

        opts, sampler = shared.opts, self.sampler
        known = processing.StableDiffusionProcessing.__dataclass_fields__
        p = processing.StableDiffusionProcessingTxt2Img(
            sd_model=shared.sd_model,
            outpath_samples=opts.outdir_samples or opts.outdir_txt2img_samples,
            outpath_grids=opts.outdir_grids or opts.outdir_txt2img_grids,
            prompt=picture.tagged,
            negative_prompt=sampler.negative_prompt,
            seed=picture.seed,
            subseed=picture.seed,
            sampler_name=sampler.name or samplers()[0],
            **({"scheduler": "Automatic"} if "scheduler" in known else {}),
            steps=sampler.steps,
            cfg_scale=sampler.guidance_scale,
            width=sampler.width or self.native,
            height=sampler.height or self.native,
            do_not_save_grid=True,
            do_not_reload_embeddings=True,
            override_settings={"sd_lora": "None"} if "sd_lora" in opts.data_labels else {},
        )
        p.scripts = scripts.ScriptRunner()  # without one the infotext loses the tags
        p.cached_c, p.cached_uc = [None, None], [None, None]
        return p

    def keep(self, grid: Any, infotext: str) -> Path | None:
        """See ``Pen.keep``: among the WebUI's grids, where its settings say that grids are saved."""
        from modules import images, shared

        opts = shared.opts
        if not opts.grid_save:
            return None
        folder = opts.outdir_grids or opts.outdir_txt2img_grids
        about = {"extension": opts.grid_format, "info": infotext, "grid": True, "p": self.last}
        try:
            file, _ = images.save_image(grid, folder, "ziplora", short_filename=True, **about)
        except OSError as error:
            raise OutputError(f"The WebUI can't save the grid in {os.fspath(folder)} ({error}).") from error
        return Path(file)


def _require_worn(picture: Picture) -> None:
    """Raise HostError for a LoRA that the WebUI has left out of a picture, which it only notes in its log."""
    networks = loras.extension()
    worn = {network.name for network in networks.loaded_networks} if networks is not None else set()
    missing = [name for name, _ in picture.loras if name not in worn]
    if missing:
        raise HostError(
            f"The WebUI could not load the LoRA {missing[0]}; its console says why. Refresh the list, or choose "
            "another file."
        )
