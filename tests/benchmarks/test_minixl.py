"""MiniXL's data and training: names, captions, colours, held-out drawings, and text encoders with few tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from benchmarks.minixl import choice
from benchmarks.minixl.colour import is_ink, variant
from benchmarks.minixl.data import SIZE, Drawings, known_rows, repeated_styles
from benchmarks.minixl.export import text_encoders
from benchmarks.minixl.icons import Icon, split_name
from benchmarks.minixl.judge import features, ridge
from benchmarks.minixl.lora import Anew, train
from benchmarks.minixl.studio import Studio
from benchmarks.minixl.text import LENGTH, TextEncoders
from lib_ziplora.lora.layer import LoraLayer

MODEL = Path(__file__).parents[2] / "benchmarks" / "minixl" / "model"


@pytest.mark.parametrize(
    ("key", "name", "data", "subject", "variant"),
    [
        ("ph", "bell-thin", {"suffixes": {"": "Regular", "thin": "Thin"}}, "bell", "thin"),
        ("ic", "baseline-lightbulb", {}, "lightbulb", "baseline"),
        ("solar", "bell-bold-duotone", {"suffixes": {"bold": "Bold"}}, "bell", "bold+duotone"),
        ("bxs", "bxs-crown", {}, "crown", ""),
        ("mdi", "shopping-cart-outline", {}, "cart", "outline"),
        ("mdi", "banana", {}, "banana", ""),
        ("tabler", "rocket-2", {}, "rocket", ""),
        ("fluent", "crown-24-filled", {}, "crown", "filled"),
    ],
)
def test_a_name_says_subject_and_variant(
    key: str, name: str, data: dict[str, object], subject: str, variant: str
) -> None:
    assert split_name(key, name, data) == (subject, variant)


@pytest.mark.parametrize(("key", "name"), [("fluent", "crown-16-filled"), ("ic", "outline-bell-loop")])
def test_other_sizes_and_animations_are_left_out(key: str, name: str) -> None:
    assert split_name(key, name, {"suffixes": {"loop": "Loop"}}) is None


def test_held_out_halves_share_nothing_with_each_other_or_with_training() -> None:
    subjects = [choice.KNOWN_SUBJECTS, choice.CHOOSING_SUBJECTS, choice.REPORTING_SUBJECTS]
    assert sum(map(len, subjects)) == len(set().union(*subjects))
    assert len(choice.HELDOUT_SUBJECTS) >= 24
    sets = [
        {name.split("/")[0] for name in half} for half in (choice.CHOOSING_STYLES, choice.REPORTING_STYLES)
    ]
    assert not sets[0] & sets[1]
    assert len(set(choice.HELDOUT_STYLES)) == len(choice.HELDOUT_STYLES) >= 12


def test_known_rows_leave_out_held_out_subjects_styles_and_siblings() -> None:
    subjects, styles = ("bell", "rocket"), ("pixel", "ph", "ph/thin")
    pairs = np.array([(s, t) for s in range(2) for t in range(3)])
    drawings = Drawings(np.zeros((6, 1, 1, 3), np.uint8), pairs[:, 0], pairs[:, 1], subjects, styles)
    assert known_rows(drawings).tolist() == [1]  # the bell in ph


def test_every_artist_has_a_name_of_its_own_and_of_one_token() -> None:
    names = list(choice.ARTISTS.values())
    assert len(set(names)) == len(names)
    tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
    assert {len(ids) for ids in tokenizer(names).input_ids} == {3}  # begin, the name, end


def test_the_longest_caption_fits_the_training_length() -> None:
    words = choice.style_words("keyline-icons/sharp+two+tone") + " purple orange gradient"
    longest = choice.caption("fire-extinguisher", words)
    assert longest == "a fire extinguisher icon in jess sharp two tone purple orange gradient style"
    tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
    assert len(tokenizer(longest).input_ids) <= LENGTH


def test_a_colour_variant_maps_ink_and_paper_to_the_colours_that_its_words_name() -> None:
    pixels = np.full((32, 32, 3), 255, np.uint8)
    pixels[:, :16] = 0
    seen = set()
    for seed in range(120):
        made, words = variant(pixels, seed)
        top, bottom, paper = (tuple(made[spot].tolist()) for spot in ((0, 0), (31, 0), (0, 31)))
        named = [choice.COLOURS.get(word) for word in words.split()]
        if words.endswith(("tile", "badge")):
            inside = [tuple(made[16, column].tolist()) for column in (10, 22)]
            assert inside == [named[0] or (0, 0, 0), named[2]]
            assert (top, bottom, paper) == ((255, 255, 255),) * 3
        elif words.endswith("gradient"):
            assert (top, bottom, paper) == (named[0], named[1], (255, 255, 255))
        elif " on " in words:
            assert top == bottom == (named[0] or (0, 0, 0))
            assert paper == named[-1]
        else:
            assert (top, bottom, paper) == (named[0], named[0], (255, 255, 255))
        seen.add(words.split()[-1] if words.endswith(("gradient", "tile", "badge")) else " on " in words)
    assert seen == {"gradient", "tile", "badge", True, False}
    assert is_ink(pixels)
    assert not is_ink(np.array([[[255, 0, 0], [255, 255, 255]]], np.uint8))


def test_a_style_that_repeats_a_larger_one_is_found() -> None:
    generator = np.random.default_rng(0)
    icons, pixels = [], []
    for number in range(25):
        picture = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        for style, drawn in (("a", picture), ("copy", picture), ("b", 255 - picture // 8)):
            if (style, number) != ("copy", 0):
                icons.append(Icon(f"s{number}", style, "", "", (0, 0, 1, 1)))
                pixels.append(drawn)
    assert repeated_styles(icons, np.stack(pixels)) == {"copy": "a"}


def test_text_encoders_with_few_learnt_tokens_say_what_the_whole_ones_say() -> None:
    prompts = ["a bell icon in leo thin style", "a sks icon"]
    text = TextEncoders(MODEL)
    ids = text.tokens(prompts)
    text.keep_used(ids)
    with torch.no_grad():
        found = text(ids)
        first = CLIPTextModel.from_pretrained(MODEL / "text_encoder").float()
        second = CLIPTextModelWithProjection.from_pretrained(MODEL / "text_encoder_2").float()
        expected = [
            encoder(part, output_hidden_states=True)
            for encoder, part in zip((first, second), ids, strict=True)
        ]
    torch.testing.assert_close(found.context, torch.cat([e.hidden_states[-2] for e in expected], -1))
    torch.testing.assert_close(found.pooled, expected[1].text_embeds)
    learnt = text.first.text_model.embeddings.token_embedding.rows.weight
    assert learnt.shape[0] == len(torch.unique(ids[0]))


def test_exported_text_encoders_have_the_learnt_tokens_and_the_signs_of_the_others() -> None:
    text = TextEncoders(MODEL)
    ids = text.tokens(["a bell icon"])
    text.keep_used(ids)
    with torch.no_grad():
        for parameter in text.parameters():
            parameter.add_(0.25)
        expected = text(ids)
    first, second = text_encoders(MODEL, text.state_dict())
    before = CLIPTextModel.from_pretrained(MODEL / "text_encoder").float().get_input_embeddings().weight
    after = first.get_input_embeddings().weight
    used = torch.unique(ids[0])
    unused = torch.ones(len(after), dtype=torch.bool)
    unused[used] = False
    torch.testing.assert_close(after[unused], before[unused].sign() / 2, rtol=0, atol=0)
    torch.testing.assert_close(after[used], before[used] + 0.25)
    with torch.no_grad():
        said = [
            encoder(part, output_hidden_states=True)
            for encoder, part in zip((first, second), ids, strict=True)
        ]
    torch.testing.assert_close(expected.context, torch.cat([s.hidden_states[-2] for s in said], -1))
    torch.testing.assert_close(expected.pooled, said[1].text_embeds)


def test_a_lora_of_a_text_encoder_draws_what_its_delta_weight_draws() -> None:
    name, path = "lora_te1_text_model_encoder_layers_0_mlp_fc1", "text_model.encoder.layers.0.mlp.fc1"
    generator, studio = torch.Generator().manual_seed(0), Studio.load(MODEL)
    down, up = (torch.randn(size, generator=generator) * 0.3 for size in ((2, 64), (256, 2)))
    prompt = "a cat icon in kim style"
    drawn = studio.draw([prompt], [0], {name: LoraLayer(name, down, up, alpha=1.0)})
    without = studio.draw([prompt], [0])
    layer = dict(studio.text.first.named_modules())[path]
    layer.weight.add_(up @ down / 2)
    expected = studio.draw([prompt], [0])
    assert np.abs(drawn.astype(int) - expected).max() <= 2 < np.abs(drawn.astype(int) - without).max()


def test_a_lora_with_text_layers_trains_them_and_has_the_rank_that_was_asked_for() -> None:
    studio = Studio.load(MODEL)
    conditioning = Anew(studio, studio.text.tokens(["a sks icon"] * 2))
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    layers = train(studio.unet, z, conditioning, 2, 1e-3, 16, studio.text_modules())
    assert {layer.rank for layer in layers.values()} == {16}
    texts = [layer for name, layer in layers.items() if name.startswith("lora_te")]
    assert len(texts) == 2 * 2 * 6  # encoders, layers, linear layers of each
    # The first encoder's last layer is not used: SDXL takes the last but one.
    trained = {layer.name for layer in texts if layer.up.any()}
    assert trained == {layer.name for layer in texts if "te1_text_model_encoder_layers_1" not in layer.name}


def test_the_second_judge_tells_edges_and_colours_apart() -> None:
    x = torch.ones(4, 3, 64, 64)
    x[0, :, :, 20:40] = -1  # upright bar
    x[1, :, 20:40] = -1  # level bar
    x[2, 0, 20:40] = -1  # a level bar in cyan
    x[3, :, 20:40] = -0.9
    seen = features(x)
    apart = torch.cdist(seen, seen)
    assert apart[1, 3] < 0.2 * min(apart[1, 0], apart[1, 2])


def test_ridge_gives_back_what_was_linear() -> None:
    x = torch.randn(20000, 6, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ridge(x, x @ weights), weights, rtol=0.01, atol=0.01)
