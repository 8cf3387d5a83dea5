"""SDXL checkpoints judged by configuration files and headers alone, before anything is loaded."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import HostError, LoraFileError
from ..file_cache import cached_by_stat
from ..lora.formats.keys import canonical_text_name, canonical_unet_name
from ..lora.formats.speedups import distilled_model
from ..lora.io.container import RawHeader, header_of

NEED = "Choose an SDXL base checkpoint."
UNET = "model.diffusion_model."
FIRST_WEIGHT = f"{UNET}input_blocks.0.0.weight"
TEXT_ENCODERS = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
SDXL_WIDTHS, SDXL_DEPTHS = [320, 640, 1280], [2, 10]
"""Channels of SDXL's three levels, and transformer blocks of the two that have them."""
LAST_BLOCKS = (
    *(f"{place}.1.transformer_blocks.1" for place in ("input_blocks.4", "input_blocks.5")),
    *(f"output_blocks.{number}.1.transformer_blocks.1" for number in (3, 4, 5)),
    *(f"{place}.1.transformer_blocks.9" for place in ("input_blocks.7", "input_blocks.8", "middle_block")),
    *(f"output_blocks.{number}.1.transformer_blocks.9" for number in (0, 1, 2)),
)
"""The last transformer block of each place of SDXL's UNet that has some, in sgm's names."""
EPSILON = ("", "eps", "epsilon")
VELOCITY = ("v", "v_pred", "vpred", "v_prediction", "velocity")
"""What ``modelspec.prediction_type`` says of the two kinds that are taken, in words that tools write."""
FLOW_NAMES = re.compile(r"flow_?match|rectified_?flow|bigasp_?v?2_?5|nyaflow")
"""Flow-matching fine-tunes of SDXL, which single files say nowhere but in their names."""
DISTILLED_SCHEDULERS = {"LCMScheduler": "LCM", "TCDScheduler": "TCD"}


def check_checkpoint(path: Path, config: Path | None = None) -> None:
    """Refuse, from its configuration or header alone, what is no SDXL base checkpoint.

    Args:
        path: a diffusers folder or a ``.safetensors`` file.
        config: a diffusers folder whose configuration describes a file.

    Raises:
        HostError: not there, not safetensors, SD 1.5 or 2, the refiner, an inpainting model, a shortened
            UNet, or trained to predict something else than SDXL's noise or v.
    """
    if path.is_dir():
        _check_folder(path)
    elif path.is_file():
        _check_file(path)
        if config is not None and (config / "scheduler").is_dir():
            check_schedule(path.name, read_json(config / "scheduler" / "scheduler_config.json"))
    else:
        raise HostError(f"There is no checkpoint at {path}; give a diffusers folder or a .safetensors file.")


def check_schedule(name: str, scheduler: Mapping[str, Any], kind: str = "") -> None:
    """Refuse a checkpoint whose scheduler adds noise in another way than SDXL's.

    Args:
        name: of the checkpoint.
        scheduler: its configuration.
        kind: the scheduler's class, where the configuration doesn't say it.

    Raises:
        HostError: flow matching, EDM, another prediction than noise or v.
    """
    kind = kind or str(scheduler.get("_class_name", ""))
    prediction = str(scheduler.get("prediction_type") or "epsilon")
    if "FlowMatch" in kind or "flow" in prediction or scheduler.get("use_flow_sigmas"):
        raise HostError(_other_noise(name, f"flow matching (rectified flow; its scheduler is {kind})"))
    if "EDM" in kind or "sigma_data" in scheduler:
        raise HostError(_other_noise(name, f"EDM's noise, as Playground v2.5 and CosXL (scheduler {kind})"))
    if prediction not in ("epsilon", "v_prediction"):
        raise HostError(
            f"The scheduler of {name} says prediction_type {prediction!r}; epsilon or v_prediction is needed."
        )
    if not {"beta_start", "beta_schedule", "trained_betas"} & set(scheduler):
        raise HostError(
            _other_noise(name, f"the noise of {kind or 'an unknown scheduler'}, which has no betas")
        )


def _other_noise(name: str, what: str) -> str:
    return f"{name} is trained with {what}. ZipLoRA learns with SDXL's own noise, predicted as noise or v. {NEED}"


def _check_folder(path: Path) -> None:
    index = read_json(path / "model_index.json")
    unet = read_json(path / "unet" / "config.json")
    has = [index.get(part) not in (None, [None, None]) for part in ("text_encoder", "text_encoder_2")]
    _judge(
        path,
        text_encoders=(has[0], has[1]),
        size_conditioning=unet.get("addition_embed_type") == "text_time",
        channels=unet.get("in_channels", 4),
    )
    _require_whole(path, not _shortened(unet))
    if unet.get("time_cond_proj_dim") is not None:
        raise HostError(
            f"{path.name} is an LCM with its guidance built into the UNet, which a merge can't give. {NEED}"
        )
    check_schedule(path.name, read_json(path / "scheduler" / "scheduler_config.json"))
    unet_files(path)


def _shortened(unet: Mapping[str, Any]) -> bool:
    """Whether a UNet's configuration has fewer layers than SDXL's of that width."""
    depths = unet.get("transformer_layers_per_block", 1)
    nested = isinstance(depths, list) and any(isinstance(depth, list) for depth in depths)
    wide = unet.get("block_out_channels") == SDXL_WIDTHS
    return bool(
        nested
        or unet.get("reverse_transformer_layers_per_block")
        or unet.get("mid_block_type", "UNetMidBlock2DCrossAttn") != "UNetMidBlock2DCrossAttn"
        or (wide and not (isinstance(depths, list) and depths[1:] == SDXL_DEPTHS))
    )


def _require_whole(path: Path, whole: bool) -> None:
    if not whole:
        raise HostError(
            f"{path.name} has fewer layers than SDXL: a shortened model such as SSD-1B, Vega or KOALA, which SDXL's "
            f"LoRAs don't fit. {NEED}"
        )


def _check_file(path: Path) -> None:
    header = _header(path)
    names = header.tensors
    if FIRST_WEIGHT not in names:
        raise HostError(
            f"{path.name} holds no Stable Diffusion UNet; is it a LoRA or a part of a checkpoint?"
        )
    channels = names[FIRST_WEIGHT].shape[1]
    first, second = (any(name.startswith(start) for name in names) for start in TEXT_ENCODERS)
    _judge(
        path,
        text_encoders=(first, second or any(n.startswith("conditioner.embedders.0.model.") for n in names)),
        size_conditioning=f"{UNET}label_emb.0.0.weight" in names,
        channels=channels,
    )
    check_variant(path)


def check_variant(path: Path) -> None:
    """Refuse a single file of SDXL's kind that adds other noise or has fewer layers.

    Raises:
        HostError: its tensors' names, its metadata or its own name say so.
    """
    header = _header(path)
    _check_marks(path, header)
    names = header.tensors
    if FIRST_WEIGHT in names and names[FIRST_WEIGHT].shape[0] == SDXL_WIDTHS[0]:
        whole = all(f"{UNET}{block}.attn1.to_q.weight" in names for block in LAST_BLOCKS)
    else:
        middle = {name.split(".")[3] for name in names if name.startswith(f"{UNET}middle_block.")}
        whole = not middle or "1" in middle
    _require_whole(path, whole)


def _check_marks(path: Path, header: RawHeader) -> None:
    if any(name.startswith("edm_vpred.") for name in header.tensors):
        raise HostError(_other_noise(path.name, "EDM's noise, as CosXL (it holds edm_vpred.*)"))
    if {"edm_mean", "edm_std"} & set(header.tensors):
        raise HostError(
            _other_noise(path.name, "EDM's noise, as Playground v2.5 (it holds edm_mean and edm_std)")
        )
    said = prediction_of(header.metadata)
    if said not in EPSILON + VELOCITY:
        raise HostError(_other_noise(path.name, f"another prediction: its metadata say {said!r}"))
    names = (path.stem, header.metadata.get("modelspec.title", ""))
    for name in (re.sub(r"[^a-z0-9]+", "_", name.lower()) for name in names):
        if FLOW_NAMES.search(name):
            raise HostError(_other_noise(path.name, "flow matching (rectified flow), by its name"))
        if re.search(r"(?:^|_)cosxl", name):
            raise HostError(_other_noise(path.name, "EDM's noise, as CosXL, by its name"))


def prediction_of(metadata: Mapping[str, str]) -> str:
    """What a single file's metadata say that it predicts, as ``v_prediction``; "" where they don't."""
    keys = ("modelspec.prediction_type", "modelspec.predict_key")
    said = next((metadata[key] for key in keys if metadata.get(key)), "")
    return re.sub(r"[-\s]+", "_", said.strip().lower())


def _judge(path: Path, *, text_encoders: tuple[bool, bool], size_conditioning: bool, channels: int) -> None:
    if text_encoders == (False, True):
        raise HostError(f"{path.name} is the SDXL refiner, which LoRAs are not made for. {NEED}")
    if text_encoders != (True, True) or not size_conditioning:
        raise HostError(f"{path.name} is not SDXL (no second text encoder or no size conditioning). {NEED}")
    if channels != 4:
        raise HostError(
            f"{path.name} takes {channels} input channels instead of 4: an inpainting or editing model. {NEED}"
        )


@cached_by_stat(8)
def _header(path: Path) -> RawHeader:
    if path.suffix.lower() != ".safetensors":
        raise HostError(
            f"{path.name} is not a .safetensors file; convert the checkpoint to safetensors first."
        )
    try:
        return header_of(path)
    except LoraFileError as error:
        raise HostError(f"The checkpoint can't be read: {error}") from error


def distillation(path: Path | None) -> str:
    """What made a checkpoint need few steps and no guidance (``Lightning``, ...); "" for an ordinary one.

    By its name, the names in its metadata, and the scheduler of a folder; "" where they can't be read.
    """
    with contextlib.suppress(HostError):
        if path is not None and path.is_file():
            return distilled_model(path.stem, _header(path).metadata.get("modelspec.title", ""))
        if path is not None:
            scheduler = read_json(path / "scheduler" / "scheduler_config.json")
            configs = (read_json(path / "model_index.json"), read_json(path / "unet" / "config.json"))
            origins = (Path(str(config.get("_name_or_path", ""))).name for config in configs)
            named = distilled_model(path.name, path.resolve().name, *origins)
            return named or DISTILLED_SCHEDULERS.get(str(scheduler.get("_class_name", "")), "")
    return ""


def layer_shapes(path: Path | None) -> dict[str, tuple[int, ...]]:
    """Canonical layer name -> the weight's shape, of the UNet and of those text encoders that name their layers.

    Empty without a checkpoint and where a file can't be read.
    """
    found: dict[str, tuple[int, ...]] = {}
    try:
        for files, prefix, encoder in _parts(path) if path else ():
            for key, entry in (tensor for file in files for tensor in _header(file).tensors.items()):
                if key.startswith(prefix) and key.endswith(".weight") and len(entry.shape) in (2, 4):
                    place = key[len(prefix) : -len(".weight")]
                    name = canonical_text_name(place, encoder) if encoder else canonical_unet_name(place)
                    found |= {name: entry.shape} if name else {}
    except HostError:
        return {}
    return found


def _parts(path: Path) -> Iterator[tuple[Sequence[Path], str, int]]:
    """(Files, prefix of its tensors, number of the text encoder or 0) of the models that a checkpoint keeps."""
    if path.is_file():
        yield [path], UNET, 0
        yield [path], TEXT_ENCODERS[0], 1
        return
    yield unet_files(path), "", 0
    for number, folder in enumerate(("text_encoder", "text_encoder_2"), 1):
        yield sorted((path / folder).glob("*.safetensors")), "", number


def read_json(path: Path) -> dict[str, Any]:
    """A configuration file of a diffusers folder.

    Raises:
        HostError: it is missing or no JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise HostError(
            f"{path.parent} has no {path.name}: it is no diffusers checkpoint. "
            "Give the folder that holds model_index.json, or a .safetensors file."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise HostError(f"{path} can't be read ({error}).") from error
    if not isinstance(data, dict):
        raise HostError(f"{path} is no diffusers configuration: it holds no JSON object.")
    return data


def unet_files(path: Path) -> list[Path]:
    """The checkpoint file itself, or the safetensors files of a folder's UNet (one variant).

    Raises:
        HostError: the folder's UNet is not stored as safetensors.
    """
    if path.is_file():
        return [path]
    files = sorted((path / "unet").glob("*.safetensors"))
    variant = variant_of(files)
    files = [f for f in files if (".fp16." in f.name) == (variant == "fp16")]
    if not files:
        raise HostError(
            f"{path / 'unet'} holds no .safetensors file; only safetensors checkpoints are loaded."
        )
    return files


def variant_of(files: Sequence[Path]) -> str | None:
    """``fp16`` where a folder holds nothing but that variant."""
    return "fp16" if files and all(".fp16." in f.name for f in files) else None


def sha256_of(files: Sequence[Path]) -> str:
    """sha256, lower-case hex, of the files' bytes one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()
