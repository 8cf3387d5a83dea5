# ruff: noqa: E501
"""``docs/formats.md``, made from the reader's own tables: ``python -m tests.lora.formats_page``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lib_ziplora.lora.formats.families import FAMILIES, RELATIVE, Family
from lib_ziplora.lora.formats.keys import (
    FAMILY_PARTS,
    LOW_RANK_PARTS,
    MODULE_PARTS,
    NORM_PARTS,
    PART_NAMES,
    PARTS,
    SECTIONS,
    WRAPPERS,
    parse_key,
)
from lib_ziplora.lora.formats.patterns import PATTERN_LIMIT, PATTERNS_LIMIT
from lib_ziplora.lora.formats.peft_config import (
    ALPHAS,
    HARMLESS_STARTS,
    HEADER_KEY,
    REFUSED_OPTIONS,
    SIDECAR,
    STARTS,
)
from lib_ziplora.lora.io.metadata import TAGS_LIMIT

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
PATH = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
SGM = "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
MODULE = f"lora_unet_{SGM.replace('.', '_')}"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"

# Dialect -> (who writes it, one layer's name in it).
DIALECTS = {
    "kohya": ("sd-scripts, LyCORIS, most files", MODULE),
    "kohya-diffusers": ("OneTrainer, ai-toolkit", f"lora_unet_{PATH.replace('.', '_')}"),
    "lycoris": ("LyCORIS' wrapper, SimpleTuner", f"lycoris_{PATH.replace('.', '_')}"),
    "diffusers": ("diffusers", f"unet.{PATH}"),
    "diffusers, ComfyUI's": ("ComfyUI, OneTrainer", f"diffusion_model.{SGM}"),
    "diffusers, bare": ("OneTrainer, converters", PATH),
    "peft": ("PEFT", f"base_model.model.{PATH}"),
    "peft, wrapped": ("PEFT inside a pipeline", f"unet.base_model.model.{PATH}"),
}
BESIDE = {
    "diff_b": "a bias difference: carried where a layer stands beside it, else left out and said",
    "lora_B.bias": "a bias difference, times alpha / rank",
    "lora_up.bias": "a bias difference, times alpha / rank",
    "alpha": "the layer's alpha; of no account where a family has no rank (a full difference, LoKr of two whole matrices)",
    "scale": "alpha / rank, and before it",
    "weight": "of (IA)3 its numbers; else a whole weight, refused",
    "bias": "a whole bias, refused",
}


def treatment(name: str, family: Family) -> str:
    """What is done with a family, in words."""
    if family.refused:
        return f"refused: {family.refused}"
    if name == "lora":
        return "taken exactly, in its own dtype"
    if name == "norm":
        return "carried into the merged file as it is, times the LoRA's weight; one of the two alone gets zeros beside it"
    if name == "lora-bias":
        return "taken exactly, its bias as a bias difference"
    if name in RELATIVE:
        return "computed against the checkpoint, then made low-rank (kept energy)"
    return "made low-rank (kept energy), with the error told"


def cell(name: str, family: Family, layer: str) -> str:
    """What becomes of a family's tensors in one dialect, by parsing each of their names."""
    tails = family.tails or (tuple(LOW_RANK_PARTS) if name == "lora" else ())
    norm = name == "norm"
    owner = layer.replace("attn1.to_q", "norm1").replace("attn1_to_q", "norm1") if norm else layer
    for tail in tails:
        parsed = parse_key(f"{owner}.{tail}")
        assert parsed.module == (MODULE.replace("attn1_to_q", "norm1") if norm else MODULE), (owner, tail)
        assert parsed.family == ("lora" if name == "lora" else FAMILY_PARTS[tail]), (owner, tail)
    if family.refused:
        return "refused"
    return "checkpoint" if name in RELATIVE else "read"


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines)


def code(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def families() -> Iterator[Sequence[str]]:
    for name, family in FAMILIES.items():
        tails = family.tails or {"lora": tuple(LOW_RANK_PARTS), "module": tuple(MODULE_PARTS)}.get(name, ())
        told = code(tails) or {"unknown": "any other of a layer that SDXL has"}.get(
            name, "`init_lora_weights`"
        )
        yield family.label, told, treatment(name, family)


def parts() -> Iterator[Sequence[str]]:
    for tail in sorted(PARTS):
        family = FAMILY_PARTS.get(tail) or ("lora" if tail in LOW_RANK_PARTS else "module")
        yield (
            f"`{tail}`",
            FAMILIES[family].label,
            PART_NAMES.get(tail, tail),
            BESIDE.get(tail, treatment(family, FAMILIES[family])),
        )


def matrix() -> Iterator[Sequence[str]]:
    for name, family in FAMILIES.items():
        if family.tails or name == "lora":
            yield family.label, *(cell(name, family, layer) for _, layer in DIALECTS.values())


def dialects() -> Iterator[Sequence[str]]:
    for dialect, (writer, layer) in DIALECTS.items():
        assert parse_key(f"{layer}.alpha").dialect == dialect.partition(",")[0]
        yield dialect, writer, f"`{layer}`"


def sections() -> Iterator[Sequence[str]]:
    models = {
        "unet": "UNet",
        "te1": "first text encoder",
        "te2": "second text encoder",
        "te": "first text encoder (of an older model's naming)",
        "text_model": "the first text encoder, unless width (1280), layers (12 and more), the folder `text_encoder_2` or "
        "the configuration say that it is the second",
    }
    for prefix, section in SECTIONS.items():
        yield f"`{prefix or '(nothing)'}`", models[section]


def options() -> Iterator[Sequence[str]]:
    alphas = ", ".join(f"{kind}: `{alpha}`" for kind, alpha in ALPHAS.items())
    yield "`peft_type`", f"{alphas}; every other type is refused by its name"
    yield (
        "`alpha_pattern`, `rank_pattern`",
        "regular expressions by PEFT's own rule, the first that fits; refused where one has look-around, back references "
        f"or quantifiers within quantifiers, over {PATTERN_LIMIT} characters, or all together over {PATTERNS_LIMIT}",
    )
    yield "`use_rslora`", "alpha / sqrt(rank)"
    yield "`use_dora`", "by the magnitudes in the file; refused where there are none"
    yield "`lora_bias`", "as bias differences"
    yield (
        "`fan_in_fan_out`",
        "of no account: SDXL has no layer whose weight lies the other way, and PEFT passes it over",
    )
    yield (
        "`modules_to_save`, `bias`",
        f"refused where the file has such tensors: {FAMILIES['module'].refused}",
    )
    yield (
        f"`init_lora_weights`: {code(sorted(HARMLESS_STARTS))}, true, false",
        "taken: they leave the checkpoint's weights as they are",
    )
    yield (
        f"`init_lora_weights`: {code(sorted(STARTS))}",
        "what it took off is computed from the checkpoint and taken off again, exactly",
    )
    yield (
        "`init_lora_weights`: any other (`pissa_niter_4`, `corda`, `loftq`, …)",
        "refused: the file does not hold what it took off",
    )
    for name, why in REFUSED_OPTIONS.items():
        yield f"`{name}`", f"refused: {why}"
    yield "several adapters in one file", "refused by their names"


def page() -> str:
    heads = list(DIALECTS)
    return f"""# LoRA files that are read

What is done with each kind of LoRA, in each naming, tensor by tensor. Made from the reader's own tables by
`python -m tests.lora.formats_page`; a test makes it anew and compares.

## Families

{table(("family", "told by", "what is done"), families())}

DoRA's magnitudes are those of the outputs or of the inputs, told by their shape, as LyCORIS, OneTrainer, PEFT and
ai-toolkit write them. Automatic1111 1.10 takes all for those of the inputs, and the Forges divide those of the outputs
by the checkpoint's own norms; the merge takes them as they were trained and says so. Layers of text encoders need the checkpoint only where text encoders are merged.

## Namings

{table(("naming", "written by", "one layer"), dialects())}

{table(("prefix", "means"), sections())}

PEFT's `base_model.model.` and what distributed training and `torch.compile` put into names ({code([w.rstrip("_") for w in WRAPPERS])},
`_orig_mod`, `_fsdp_wrapped_module`) may stand before or after the prefix. An adapter's own name (`lora_A.default.weight`)
is passed over.

## Families in each naming

`read`: without a checkpoint. `checkpoint`: with one. `refused`: by its name, with the reason.

{table(("family", *heads), matrix())}

## Tensors

{table(("ends in", "family", "part", "what is done"), parts())}

In norm layers {code(list(NORM_PARTS))} mean {code(list(NORM_PARTS.values()))} (ComfyUI, LyCORIS).

## PEFT's configuration

In `{SIDECAR}` beside a file with PEFT's names, or in diffusers' header (`{HEADER_KEY}`). An `alpha` or `scale` tensor goes
before it. Where neither is there, alpha is the rank, and with PEFT's names that is said. What a configuration leaves
out is PEFT's own default; one that can't be read, or is of another type than the file, is refused by name.

{table(("option", "what is done"), options())}

## Beside the layers

- `lora_te2_text_projection` is a layer like others; Forge, ComfyUI and diffusers apply it, Automatic1111 does not.
- Bundled embeddings (`bundle_emb.*`) are named, and with *Also save bundled embeddings* (`--save-embeddings`) saved as
  files of their own: in a WebUI among its embeddings, else beside the merged file.
- diffusers refuses a file with one of the six layers outside SDXL's blocks or with differences of norms or biases, and
  the report says so where the merged file has some.
- Tensors that belong to none of the layers of SDXL that a LoRA changes are left out, counted and said.
- Training tags (`ss_tag_frequency`) of all LoRAs together are kept up to {TAGS_LIMIT:,} characters, the most frequent
  first, and it is said when some were left out.
"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
