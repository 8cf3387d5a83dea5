"""The estimate of memory against activations counted on the full-size UNet, on the meta device."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="counts activations on diffusers' UNet")

from benchmarks import memory
from benchmarks.activations import OUTSIDE, counted
from benchmarks.cost import MetaDenoiser, attention_only, lora
from lib_ziplora.lora.formats.keys import canonical_modules
from lib_ziplora.training.memory import SDXL, activations, estimate_memory
from lib_ziplora.ziplora.memory import Plan, in_order_of_worth, plans

GIB = 2**30


@functools.cache
def sdxl():
    return MetaDenoiser()


def loras(layers, rank=64, count=2):
    every = canonical_modules(sdxl().unet)
    modules = attention_only(every) if layers == "attention" else every
    return modules, [lora(modules, rank) for _ in range(count)]


@functools.cache
def count(layers, latent, rank=64):
    denoiser = sdxl()
    denoiser.latent = latent
    modules, concepts = loras(layers, rank)
    return counted(denoiser, modules, concepts), concepts


@pytest.mark.parametrize("layers", ["attention", "all"])
@pytest.mark.parametrize(("latent", "rank"), [(128, 64), (64, 64), (96, 16)])
def test_what_is_kept_without_checkpointing_is_what_was_counted(layers, latent, rank):
    found, concepts = count(layers, latent, rank)
    values = sum(found.activations.values()) / 4 / latent**2
    assert activations(Plan(False, 0.0), layers == "attention") == pytest.approx(values, rel=0.02)
    factors = sum(found.factors.values()) / 4
    merged = sum(layer.down.numel() for layers in concepts for layer in layers.values())
    assert 0.6 * merged < factors < 1.1 * merged


@pytest.mark.parametrize("share", [0.3, 0.85, 1.0])
@pytest.mark.parametrize("layers", ["attention", "all"])
def test_what_is_kept_with_checkpointing_is_what_was_counted_block_by_block(layers, share):
    found, _ = count(layers, 128)
    blocks = in_order_of_worth(sdxl().checkpoint_blocks())
    plan = Plan(False, share)
    recomputed = range(len(plan.recomputed(blocks)))
    kept = [found.activations.get(n, 0) for n in range(OUTSIDE, len(blocks)) if n not in recomputed]
    values = sum(kept) + sum(found.inputs[n] for n in recomputed)
    values += max(found.activations.get(n, 0) for n in recomputed)
    assert activations(plan, layers == "attention") == pytest.approx(values / 4 / 128**2, rel=0.02)
    assert plan.recomputed(blocks) == blocks[: len(recomputed)]


def test_the_table_has_as_many_blocks_as_the_unet():
    assert sum(group.count for group in SDXL) == len(sdxl().checkpoint_blocks())


@pytest.mark.parametrize("layers", ["attention", "all"])
@pytest.mark.parametrize("size", [512, 1024, 1536])
def test_each_plan_needs_less_than_the_one_before(layers, size):
    _, concepts = loras(layers)
    needs = [estimate_memory(concepts, size, size, plan) for plan in plans("auto", "auto")]
    assert needs == sorted(needs, reverse=True)


def test_memory_grows_with_pixels_ranks_and_loras():
    fastest = Plan(True, 0.0)

    def need(size=1024, rank=64, count=2, plan=fastest, itemsize=2):
        _, concepts = loras("attention", rank, count)
        return estimate_memory(concepts, size, size, plan, itemsize=itemsize)

    small, middle, large = (need(size) for size in (512, 1024, 2048))
    assert large - middle == pytest.approx(4 * (middle - small), rel=1e-6)
    assert need(rank=128) - need(rank=64) == pytest.approx(need(rank=256) - need(rank=192), rel=1e-6)
    assert need(count=3) > 1.3 * need()
    assert need(itemsize=4) > 1.8 * need()
    assert need(count=3, plan=Plan(False, 1.0)) < need(plan=Plan(True, 0.0))


def test_readmes_table_is_the_estimate():
    assert memory.estimates() in Path("README.md").read_text(encoding="utf-8")


def test_the_economical_plan_fits_the_cards_that_it_is_for():
    """With the UNet's weights in fp16: 9 GB at 1024 pixels, for 12 GB cards; 8 GB cards at 768."""
    _, concepts = loras("attention")
    weights = sum(p.numel() for p in sdxl().unet.parameters()) * 2
    economical = plans("auto", "auto")[-1]
    assert weights + estimate_memory(concepts, 1024, 1024, economical) < 9 * GIB
    assert weights + estimate_memory(concepts, 768, 768, economical) < 7 * GIB
