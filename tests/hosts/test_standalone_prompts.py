"""Prompts without the WebUI: its syntax, by hand and against the WebUI's own code."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_ziplora.errors import ConfigError
from lib_ziplora.hosts._diffusers.prompts import parse, windows
from lib_ziplora.hosts.standalone import StandaloneHost

from ..support import minixl
from . import real_webui as webui

pytest.importorskip("diffusers")

BOS, EOS = 49406, 49407
CARDS = (
    "a sks icon",
    "",
    "a (red:1.3) rose, ((big)) [[dull]] (two words: .7 )",
    r"wlop \(artist\), :\) \[x\] a\\b \q",
    "first part BREAK second part, (heavy:1.5)BREAK third",
    "a (cat BREAK dog:1.2) and [unbalanced (brackets",
    "no ) opening ] here: 1.2) at :3) all",
    "(masterpiece:1.2), best quality, " * 20,
    "one two three four five six seven, " * 5 + "word " * 60,
    "word " * 75 + ", after " + "word " * 75 + "," * 80,
    "émoji 🦊, 猫, ½ × %",
)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return StandaloneHost(minixl.MODEL, device="cpu").pipeline()


def encoded(pipeline: Any, prompt: str) -> tuple[Tensor, Tensor]:
    host = StandaloneHost(minixl.MODEL, device="cpu")
    host._pipeline = pipeline
    with host.open() as session:
        cond = session.encode_prompts([prompt], width=128, height=128, negative=False, deltas={})
    return cond.context, cond.vector[:, :-6]


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("plain words", [("plain words", 1)]),
        ("", [("", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("((twice)) [less]", [("twice", 1.21), (" ", 1), ("less", 1 / 1.1)]),
        ("(a:1.2)(b: 0.5 )", [("a", 1.2), ("b", 0.5)]),
        ("(outer (inner:2):0.5)", [("outer ", 0.5), ("inner", 1.0)]),
        ("(same)(weight)", [("sameweight", 1.1)]),
        (r"\(literal\] \\ \x", [(r"(literal] \ x", 1)]),
        ("(open [both", [("open ", 1.1), ("both", 1.1 / 1.1)]),
        ("a) b] c:2) d: e", [("a) b] c:2) d: e", 1)]),
        ("a, BREAK b BREAK", [("a,", 1), ("BREAK", -1), ("b", 1), ("BREAK", -1), ("", 1)]),
        ("BREAKS a_BREAK", [("BREAKS a_BREAK", 1)]),
    ],
)
def test_pieces_by_hand(prompt: str, pieces: list[tuple[str, float]]) -> None:
    found = [piece for piece in parse(prompt) if piece != ("", 1.0)]
    expected = [piece for piece in pieces if piece != ("", 1)]
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize("prompt", ["(a:1.2.3)", "(a:.)", "(a:" + "9" * 400 + ")", "a" * 10_001])
def test_what_can_not_be_weighed_or_is_endless_is_refused(prompt: str) -> None:
    with pytest.raises(ConfigError, match=r"weight|characters"):
        parse(prompt)


def test_hostile_prompts_are_parsed_in_a_moment() -> None:
    for unit in ("(", "(a", ":", ": 1", " ", "[(", "\\", "BREAK ", "<a:", "1"):
        parse((unit * 10_000)[:10_000])


def test_windows_by_hand(pipeline: Any) -> None:
    """``word`` and the comma are one token each."""
    tokenizer = pipeline.tokenizer
    lengths = {
        "": [0],
        "word " * 75: [75],
        "word " * 76: [75, 1],
        "word " * 75 + ",": [75, 1],
        # A comma among the last 20 tokens: the window ends behind it.
        "word " * 60 + ", " + "word " * 20: [61, 20],
        "word " * 55 + ", " + "word " * 20: [56, 20],
        "word " * 54 + ", " + "word " * 21: [75, 1],
        "word " * 74 + ", word": [75, 1],
        "a BREAK b": [1, 1],
        "BREAK a BREAK BREAK b BREAK": [0, 1, 0, 1],
    }
    assert {prompt: [len(w) for w in windows(prompt, tokenizer)] for prompt in lengths} == lengths


def test_the_conditioning_of_emphasis_by_hand(pipeline: Any) -> None:
    """``a (red:1.5) rose BREAK [dull]``, token by token: weights times hidden states, the mean restored."""
    words = [("a", 1.0), ("red", 1.5), ("rose", 1.0)], [("dull", 1 / 1.1)]
    context = []
    for encoder, pad in ((pipeline.text_encoder, EOS), (pipeline.text_encoder_2, 0)):
        rows = []
        for window in words:
            tokens = [pipeline.tokenizer.convert_tokens_to_ids(f"{word}</w>") for word, _ in window]
            row = [BOS, *tokens, EOS] + [pad] * (75 - len(tokens))
            with torch.no_grad():
                output = encoder(torch.tensor([row]), output_hidden_states=True)
            hidden = output.hidden_states[-2][0].double().numpy()
            weighted = hidden.copy()
            for place, (_, weight) in enumerate(window, 1):
                weighted[place] *= weight
            rows.append(torch.from_numpy(weighted * (hidden.mean() / weighted.mean())))
            if encoder is pipeline.text_encoder_2 and window is words[0]:
                pooled = output[0]
        context.append(torch.cat(rows))
    ours, ours_pooled = encoded(pipeline, "a (red:1.5) rose BREAK [dull]")
    assert torch.allclose(ours[0].double(), torch.cat(context, dim=-1), atol=1e-5)
    assert torch.equal(ours_pooled, pooled)


def test_escaped_brackets_are_brackets(pipeline: Any) -> None:
    """As the tokenizer reads the text without backslashes; nothing is weighed."""
    ours, _ = encoded(pipeline, r"a \(b\)")
    row = pipeline.tokenizer("a (b)", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        first = pipeline.text_encoder(row, output_hidden_states=True).hidden_states[-2]
    assert torch.equal(ours[..., : first.shape[-1]], first)


@pytest.fixture
def webui_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The WebUI's own prompt parser and text encoder wrapper, with its default settings and nothing else."""
    if "modules" in sys.modules:
        pytest.skip("a whole WebUI runs in this process")
    opts = SimpleNamespace(
        emphasis="Original",
        comma_padding_backtrack=20,
        use_old_emphasis_implementation=False,
        textual_inversion_add_hashes_to_infotext=False,
        sdxl_clip_l_skip=False,
    )
    empty = {
        "modules": {"__path__": []},
        "modules.devices": {"device": torch.device("cpu"), "torch_npu_set_device": lambda: None},
        "modules.sd_hijack": {"StableDiffusionModelHijack": object, "model_hijack": None},
        "modules.shared": {"opts": opts},
        "lark": {"Lark": lambda grammar: None},
    }
    for name, content in empty.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    loaded = {}
    for name in ("prompt_parser", "sd_emphasis", "sd_hijack_clip"):
        spec = importlib.util.spec_from_file_location(
            f"modules.{name}", Path(webui.ROOT, "modules", f"{name}.py")
        )
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, f"modules.{name}", module)
        setattr(sys.modules["modules"], name, module)
        spec.loader.exec_module(module)
        loaded[name] = module
    for name in ("devices", "sd_hijack", "shared"):
        setattr(sys.modules["modules"], name, sys.modules[f"modules.{name}"])
    yield loaded


@pytest.mark.webui
@pytest.mark.skipif(webui.KIND != "a1111", reason="needs ZIPLORA_WEBUI=<folder of a WebUI>; any Python")
class TestAgainstTheWebui:
    @pytest.mark.parametrize("prompt", CARDS)
    def test_the_conditioning_is_the_webuis(
        self, pipeline: Any, webui_code: dict[str, ModuleType], prompt: str
    ) -> None:
        theirs = [
            webui_conditioning(webui_code["sd_hijack_clip"], encoder, tokenizer, prompt)
            for encoder, tokenizer in (
                (pipeline.text_encoder, pipeline.tokenizer),
                (pipeline.text_encoder_2, pipeline.tokenizer_2),
            )
        ]
        context, pooled = encoded(pipeline, prompt)
        expected = torch.cat([hidden for hidden, _ in theirs], dim=-1)
        assert context.shape == expected.shape
        assert torch.allclose(context, expected, atol=1e-5)
        assert torch.allclose(pooled, theirs[1][1], atol=1e-5)

    def test_random_texts_are_parsed_alike(self, webui_code: dict[str, ModuleType]) -> None:
        draw = random.Random(0)
        alphabet = ["(", ")", "[", "]", ":", "\\", "BREAK", " ", "\n", "1.2", "-1", "cat", ",", "a", "猫"]
        for _ in range(3000):
            text = "".join(draw.choices(alphabet, k=draw.randrange(1, 25)))
            try:
                theirs = webui_code["prompt_parser"].parse_prompt_attention(text)
            except ValueError:  # a number such as 1.21.2
                with pytest.raises(ConfigError):
                    parse(text)
                continue
            own = [list(piece) for piece in parse(text) if piece != ("", 1.0)]
            assert own == [piece for piece in theirs if piece != ["", 1.0]], text


def webui_conditioning(code: ModuleType, encoder: Any, tokenizer: Any, prompt: str) -> tuple[Tensor, Tensor]:
    class Wrapper(code.FrozenCLIPEmbedderWithCustomWordsBase):  # type: ignore[name-defined, misc]
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.comma_token = tokenizer.get_vocab()[",</w>"]
            self.id_start, self.id_end, self.id_pad = BOS, EOS, tokenizer.pad_token_id

        def tokenize(self, texts: list[str]) -> list[list[int]]:
            return tokenizer(texts, truncation=False, add_special_tokens=False)["input_ids"]

        def encode_with_transformers(self, tokens: Tensor) -> Tensor:
            output = encoder(tokens, output_hidden_states=True)
            hidden = output.hidden_states[-2]
            hidden.pooled = output[0]
            return hidden

    none = SimpleNamespace(find_embedding_at_position=lambda tokens, position: (None, None))
    wrapped = torch.nn.Module()
    wrapped.return_pooled = True
    hijack = SimpleNamespace(embedding_db=none, extra_generation_params={})
    with torch.no_grad():
        return Wrapper(wrapped, hijack)([prompt])
