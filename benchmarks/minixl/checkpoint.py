"""Write a diffusers SDXL folder as one checkpoint with SDXL's original key names.

    python -m benchmarks.minixl.checkpoint --model DIFFUSERS_DIR --out DIR/minixl.safetensors

Beside ``minixl.safetensors`` stand what a WebUI needs to build a model of MiniXL's sizes:

- ``minixl.yaml``: the sgm configuration (written as JSON, which is YAML). Its extra section
  ``host`` says what sgm's configuration has no word for: the number of GroupNorm groups (sgm
  always takes 32) and the token that pads prompts of the second text encoder (the WebUI: 0).
- ``minixl-te1/``: config.json and tokenizer of the first text encoder (``version:`` names it).
- ``minixl-te2.json``: the second text encoder for ``open_clip.add_model_config``.

Every size comes from the folder's own config.json files; any SDXL-shaped UNet will do.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from benchmarks.minixl.keys import CONVERTERS, Config, Weights, require

WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


def read_config(folder: Path) -> Config:
    """Read ``folder/config.json``."""
    config: Config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def read_weights(folder: Path) -> Weights:
    """Read a component's safetensors file, or all shards that its index lists."""
    name = next((n for n in WEIGHT_FILES if (folder / n).exists()), None)
    names = {name} if name else set()
    for index in folder.glob("*.safetensors.index.json"):
        names |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    if not names:
        raise FileNotFoundError(f"no safetensors weights in {folder}")
    weights: Weights = {}
    for shard in sorted(names):
        weights.update(load_file(folder / shard))
    return weights


def per_level(value: int | list[int], levels: int) -> list[int]:
    """A config entry that may be one number for all levels."""
    return [value] * levels if isinstance(value, int) else list(value)


def unet_params(config: Config) -> Config:
    """sgm's UNetModel parameters; ``attention_head_dim`` in diffusers is the number of heads."""
    channels = config["block_out_channels"]
    levels = len(channels)
    attention = ["Attn" in kind for kind in config["down_block_types"]]
    heads = per_level(config["num_attention_heads"] or config["attention_head_dim"], levels)
    widths = {c // h for c, h, a in zip(channels, heads, attention, strict=True) if a}
    require(len(widths) == 1, f"attention heads of several widths {sorted(widths)}")
    require(all(c % channels[0] == 0 for c in channels), "channels aren't multiples of the first")
    require(config["addition_embed_type"] == "text_time", "no size conditioning")
    require(bool(config["use_linear_projection"]), "convolutional projections in the transformers")
    require(attention[-1], "no attention on the lowest level")
    return {
        "adm_in_channels": config["projection_class_embeddings_input_dim"],
        "num_classes": "sequential",
        "use_checkpoint": False,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": channels[0],
        "attention_resolutions": [2**i for i in range(levels) if attention[i]],
        "num_res_blocks": config["layers_per_block"],
        "channel_mult": [c // channels[0] for c in channels],
        "num_head_channels": widths.pop(),
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "transformer_depth": per_level(config["transformer_layers_per_block"], levels),
        "context_dim": config["cross_attention_dim"],
        "spatial_transformer_attn_type": "softmax-xformers",
        "legacy": False,
    }


def vae_params(config: Config) -> Config:
    """sgm's autoencoder parameters; the WebUI takes factor 8 and 4 channels for granted."""
    channels = config["block_out_channels"]
    require(len(channels) == 4 and config["latent_channels"] == 4, "autoencoder isn't f8 c4")
    require(config.get("shift_factor") is None, "the autoencoder shifts its latents")
    require(config.get("latents_mean") is None, "the autoencoder centres its latents")
    ddconfig: Config = {
        "attn_type": "vanilla-xformers",
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": config["sample_size"],
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": channels[0],
        "ch_mult": [c // channels[0] for c in channels],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    loss = {"target": "torch.nn.Identity"}
    return {"embed_dim": 4, "monitor": "val/rec_loss", "ddconfig": ddconfig, "lossconfig": loss}


def embedder(name: str, input_key: str, params: Config) -> Config:
    """One entry of the conditioner's list."""
    target = f"sgm.modules.encoders.modules.{name}"
    return {"is_trainable": False, "input_key": input_key, "target": target, "params": params}


def conditioner_params(te1_layers: int, te1: str, te2: str, size_width: int) -> Config:
    """The two text encoders (second but last layers) and the three pairs of sizes."""
    clip: Config = {"version": te1, "layer": "hidden", "layer_idx": te1_layers - 1}
    open_clip: Config = {"arch": te2, "version": "none", "freeze": True, "layer": "penultimate"}
    open_clip |= {"always_return_pooled": True, "legacy": False}
    sizes = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
    text = [
        embedder("FrozenCLIPEmbedder", "txt", clip),
        embedder("FrozenOpenCLIPEmbedder2", "txt", open_clip),
    ]
    size = [embedder("ConcatTimestepEmbedderND", key, {"outdim": size_width}) for key in sizes]
    return {"emb_models": text + size}


def denoiser_params(scheduler: Config) -> Config:
    """The prediction type; the noise schedule must be SDXL's, which the WebUI has built in."""
    schedule = [scheduler[k] for k in ("beta_schedule", "beta_start", "beta_end")]
    require(schedule == ["scaled_linear", 0.00085, 0.012], f"noise schedule {schedule}")
    require(scheduler["num_train_timesteps"] == 1000, "not 1000 timesteps")
    require(not scheduler.get("rescale_betas_zero_snr"), "zero terminal signal-to-noise ratio")
    kind = {"epsilon": "Eps", "v_prediction": "V"}[scheduler["prediction_type"]]
    base = "sgm.modules.diffusionmodules."
    return {
        "num_idx": 1000,
        "weighting_config": {"target": f"{base}denoiser_weighting.{kind}Weighting"},
        "scaling_config": {"target": f"{base}denoiser_scaling.{kind}Scaling"},
        "discretization_config": {"target": f"{base}discretizer.LegacyDDPMDiscretization"},
    }


def open_clip_config(config: Config) -> Config:
    """Second text encoder for open_clip; the image tower is built and thrown away by sgm."""
    require(config["hidden_act"] in ("gelu", "quick_gelu"), f"activation {config['hidden_act']}")
    width = config["hidden_size"]
    text = {
        "context_length": config["max_position_embeddings"],
        "vocab_size": config["vocab_size"],
        "width": width,
        "heads": config["num_attention_heads"],
        "layers": config["num_hidden_layers"],
    }
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 32}
    quick = config["hidden_act"] == "quick_gelu"
    shape = {"embed_dim": config["projection_dim"], "vision_cfg": vision, "text_cfg": text}
    return {**shape, "quick_gelu": quick}


def pad_token(tokenizer: Path) -> int:
    """The id of the token that fills up prompts."""
    config = json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
    token = config["pad_token"]
    vocabulary = json.loads((tokenizer / "vocab.json").read_text(encoding="utf-8"))
    return int(vocabulary[token if isinstance(token, str) else token["content"]])


def sgm_config(model: Path, te1: str, te2: str) -> Config:
    """The whole sidecar; ``te1``: folder of the first encoder, ``te2``: open_clip name."""
    unet, vae = read_config(model / "unet"), read_config(model / "vae")
    scheduler = json.loads((model / "scheduler/scheduler_config.json").read_text(encoding="utf-8"))
    layers = read_config(model / "text_encoder")["num_hidden_layers"]
    size_width = unet["addition_time_embed_dim"]
    engine: Config = {"scale_factor": vae["scaling_factor"], "disable_first_stage_autocast": True}
    for name, target, params in (
        (
            "denoiser_config",
            "modules.diffusionmodules.denoiser.DiscreteDenoiser",
            denoiser_params(scheduler),
        ),
        ("network_config", "modules.diffusionmodules.openaimodel.UNetModel", unet_params(unet)),
        (
            "conditioner_config",
            "modules.GeneralConditioner",
            conditioner_params(layers, te1, te2, size_width),
        ),
        ("first_stage_config", "models.autoencoder.AutoencoderKLInferenceWrapper", vae_params(vae)),
    ):
        engine[name] = {"target": f"sgm.{target}", "params": params}
    host = {"unet_norm_groups": unet["norm_num_groups"], "vae_norm_groups": vae["norm_num_groups"]}
    host["te2_pad_token_id"] = pad_token(model / "tokenizer_2")
    return {
        "model": {"target": "sgm.models.diffusion.DiffusionEngine", "params": engine},
        "host": host,
    }


def state_dict(model: Path) -> Weights:
    """All tensors of the folder under SDXL's original names."""
    out: Weights = {}
    for name, convert in CONVERTERS.items():
        out.update(convert(read_weights(model / name), read_config(model / name)))
    return {key: value.contiguous() for key, value in out.items()}


def export(model: Path, out: Path) -> None:
    """Write the checkpoint and its three companions; existing ones are refused."""
    te1, te2 = out.with_name(f"{out.stem}-te1"), out.with_name(f"{out.stem}-te2.json")
    config = sgm_config(model, str(te1.resolve()), te2.stem)
    open_clip = open_clip_config(read_config(model / "text_encoder_2"))
    weights = state_dict(model)
    for path in (out, out.with_suffix(".yaml"), te1, te2):
        if path.exists():
            raise FileExistsError(f"{path} is already there")
    te1.mkdir(parents=True)
    shutil.copyfile(model / "text_encoder/config.json", te1 / "config.json")
    for name in TOKENIZER_FILES:
        shutil.copyfile(model / "tokenizer" / name, te1 / name)
    te2.write_text(json.dumps(open_clip, indent=2), encoding="utf-8")
    out.with_suffix(".yaml").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file(weights, out, metadata={"format": "pt", "modelspec.resolution": resolution(model)})


def resolution(model: Path) -> str:
    """The size of its pictures, as ModelSpec writes it."""
    levels = len(read_config(model / "vae")["block_out_channels"])
    side = read_config(model / "unet")["sample_size"] << (levels - 1)
    return f"{side}x{side}"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="diffusers SDXL folder")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    args = parser.parse_args(argv)
    export(args.model, args.out)


if __name__ == "__main__":
    main()
