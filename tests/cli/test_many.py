"""More than two LoRAs, and merges that are exported again, from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lib_ziplora import cli
from lib_ziplora.cli import parsed
from lib_ziplora.cli.options import merge_from
from lib_ziplora.lora.io.read import read_lora

from ..support import minixl
from .test_cli import MODEL, PAIR, PROMPTS, SMALL

CROWN = str(minixl.SUBJECT.with_name("minixl_subject_crown.safetensors"))
MONOTONE = str(minixl.STYLE.with_name("minixl_style_picon.safetensors"))


def asked(*arguments: str) -> list[tuple[str, str, str, float, tuple[str, ...]]]:
    args = parsed(["merge", *arguments, "-o", "x.safetensors"])
    return [(lora.role, lora.lora, lora.prompt, lora.weight, lora.images) for lora in merge_from(args).loras]


@pytest.mark.parametrize(
    "arguments",
    [
        ("a", "b", "--style-weight", "0.5", "--subject-prompt", "p"),
        ("--style-weight", "0.5", "--subject-prompt", "p", "a", "b"),
        ("a", "--style-weight", "0.5", "b", "--subject-prompt", "p"),
        ("--subject", "a", "--style", "b", "--style-weight", "0.5", "--subject-prompt", "p"),
        ("--style", "b", "--subject", "a", "--subject-prompt", "p", "--style-weight", "0.5"),
    ],
)
def test_two_loras_in_every_way_of_saying_it(arguments: tuple[str, ...]) -> None:
    assert asked(*arguments) == [("subject", "a", "p", 1.0, ()), ("style", "b", "", 0.5, ())]


def test_prompts_weights_and_images_belong_to_the_loras_in_their_order() -> None:
    found = asked(
        *("--subject", "a", "--subject-prompt", "", "--subject", "b", "--subject-prompt", "q"),
        *("--style", "c", "--subject-weight", "0.3", "--style-images", "1.png", "2.png"),
        *("--style", "d", "--style-images", "3.png"),
    )
    assert found == [
        ("subject", "a", "", 0.3, ()),
        ("subject", "b", "q", 1.0, ()),
        ("style", "c", "", 1.0, ("1.png", "2.png")),
        ("style", "d", "", 1.0, ("3.png",)),
    ]
    assert [one[:2] for one in asked("a", "b", "--style", "c", "--subject", "d")] == [
        ("subject", "a"),
        ("subject", "d"),
        ("style", "b"),
        ("style", "c"),
    ]


def test_four_loras_and_their_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers")
    out, again = tmp_path / "all.safetensors", tmp_path / "again.safetensors"
    more = ("--subject", CROWN, "--subject-prompt", "", "--style", MONOTONE)
    arguments = (*PAIR, *PROMPTS, *more, *SMALL, *MODEL, "--precision", "fp32")
    assert cli.main(["merge", *arguments, "-o", str(out)]) == 0
    assert f"rank 32, {minixl.LAYERS} common layers" in capsys.readouterr().out
    assert cli.main(["re-export", str(tmp_path / "all.ziplora"), "-o", str(again), "--split"]) == 0
    first, second = load_file(out), load_file(again)
    assert all(torch.equal(first[key], second[key]) for key in {*first, *second})
    parts = {path.name for path in tmp_path.glob("again_*.safetensors")}
    assert parts == {f"again_{end}.safetensors" for end in ("subject1", "subject2", "style1", "style2")}
    light = tmp_path / "light.safetensors"
    weights = ("--subject-weight", "0.5", "--subject-weight", "0.5", "--style-weight", "0.5")
    assert cli.main(["re-export", str(out), *weights, "--style-weight", "0.5", "-o", str(light)]) == 0
    name, layer = next(iter(read_lora(light).layers.items()))
    torch.testing.assert_close(layer.delta(), 0.5 * read_lora(out).layers[name].delta())
    assert cli.main(["re-export", PAIR[0], "-o", str(tmp_path / "no.safetensors")]) == 1
    assert "has no coefficients beside it" in capsys.readouterr().err
