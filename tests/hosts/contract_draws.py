"""What every host that draws promises. An adapter's tests subclass ``DrawsContract`` and give its fixtures."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lib_ziplora.errors import HostError, Interrupted, LoraFileError
from lib_ziplora.hosts import Draws, Picture, Sampler

from .contract import Boom, assert_same, flags, snapshot

PROMPT = "a sks icon"
PLAIN = Picture(PROMPT, (), 3)


def quick(**changed: Any) -> Sampler:
    return Sampler(**{"steps": 2, "guidance_scale": 3.5, "width": 64, "height": 128, **changed})


def nothing() -> None:
    pass


def pixels(drawn: Any) -> np.ndarray:
    return np.asarray(drawn.image.convert("RGB"), dtype=np.int16)


class DrawsContract:
    """Needs the fixtures ``host``, ``parts`` (the modules that must not change), ``names`` (two installed
    LoRAs that change what is drawn) and ``folder`` (where pictures are saved)."""

    @pytest.fixture
    def host(self) -> Any:
        raise NotImplementedError

    @pytest.fixture
    def parts(self, host: Any) -> list[nn.Module]:
        raise NotImplementedError

    @pytest.fixture
    def names(self, host: Any) -> Sequence[str]:
        raise NotImplementedError

    @pytest.fixture
    def folder(self, host: Any) -> Path:
        raise NotImplementedError

    def draw(self, host: Any, *pictures: Picture, sampler: Sampler | None = None) -> list[Any]:
        with host.exclusive(), host.drawing(sampler or quick(), len(pictures)) as pen:
            return [pen.draw(picture, nothing) for picture in pictures]

    def test_the_host_can_draw(self, host: Any) -> None:
        assert isinstance(host, Draws)
        host.check_drawing()
        assert host.default_sampler().name in ("", *host.samplers())

    def test_a_picture_has_the_size_and_tells_how_it_was_drawn(self, host: Any, names: Sequence[str]) -> None:
        picture = Picture(PROMPT, ((names[0], 0.5),), 7)
        (drawn,) = self.draw(host, picture, sampler=quick(negative_prompt="blurry"))
        assert drawn.image.size == (64, 128)
        told = drawn.infotext
        assert told.startswith(f"{PROMPT} <lora:{names[0]}:0.5>") and "Negative prompt: blurry" in told
        for part in ("Steps: 2", "CFG scale: 3.5", "Seed: 7", "Size: 64x128"):
            assert part in told
        assert drawn.image.info["parameters"] == told

    def test_pictures_and_sheets_are_saved_with_their_infotext(self, host: Any, folder: Path) -> None:
        with host.exclusive(), host.drawing(quick(), 1) as pen:
            drawn = pen.draw(PLAIN, nothing)
            sheet = pen.keep(Image.new("RGB", (32, 16), "red"), "the sheet's infotext")
        for file, infotext in ((drawn.file, drawn.infotext), (sheet, "the sheet's infotext")):
            assert file is not None and folder in file.parents
            with Image.open(file) as saved:
                assert saved.info["parameters"] == infotext
        with Image.open(drawn.file) as saved:
            assert np.array_equal(np.asarray(saved.convert("RGB")), np.asarray(drawn.image.convert("RGB")))

    def test_a_seed_means_a_picture(self, host: Any) -> None:
        first, other, again = self.draw(host, PLAIN, Picture(PROMPT, (), 4), PLAIN)
        assert np.array_equal(pixels(first), pixels(again))
        assert not np.array_equal(pixels(first), pixels(other))

    def test_loras_act_by_weight_and_are_off_in_the_next_picture(
        self, host: Any, names: Sequence[str]
    ) -> None:
        one, two = names[:2]
        wanted = ((), ((one, 1.0),), ((one, 0.5),), ((one, 1.0), (two, 1.0)), ((one, 1.0),), ())
        drawn = [pixels(d) for d in self.draw(host, *(Picture(PROMPT, loras, 3) for loras in wanted))]
        for index, first in enumerate(drawn[:4]):
            assert all(not np.array_equal(first, other) for other in drawn[index + 1 : 4])
        assert np.array_equal(drawn[4], drawn[1]) and np.array_equal(drawn[5], drawn[0])

    def test_the_model_is_what_it_was(self, host: Any, parts: list[nn.Module], names: Sequence[str]) -> None:
        self.draw(host, PLAIN)  # transformers 5 installs its own hooks in a model's first forward
        before, before_flags = snapshot(parts), flags(parts)
        self.draw(host, Picture(PROMPT, ((names[0], 1.0),), 3))
        assert_same(before, snapshot(parts))
        with pytest.raises(Boom), host.exclusive(), host.drawing(quick(), 2) as pen:
            pen.draw(Picture(PROMPT, ((names[0], 1.0),), 3), nothing)
            raise Boom
        assert_same(before, snapshot(parts))
        assert flags(parts) == before_flags

    def test_drawing_leaves_the_global_random_states(self, host: Any) -> None:
        torch.manual_seed(5)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        self.draw(host, PLAIN)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]

    def test_a_step_may_end_the_drawing(
        self, host: Any, parts: list[nn.Module], names: Sequence[str]
    ) -> None:
        before = snapshot(parts)

        def stop() -> None:
            raise Interrupted("enough")

        with pytest.raises(Interrupted), host.exclusive(), host.drawing(quick(), 1) as pen:
            pen.draw(Picture(PROMPT, ((names[0], 1.0),), 3), stop)
        assert_same(before, snapshot(parts))

    def test_what_is_not_there_is_named(self, host: Any) -> None:
        with pytest.raises(HostError, match="no-such-sampler"):
            self.draw(host, PLAIN, sampler=quick(name="no-such-sampler"))
        with pytest.raises(LoraFileError, match="no-such-lora"):
            self.draw(host, Picture(PROMPT, (("no-such-lora", 1.0),), 3))

    def test_every_sampler_draws(self, host: Any) -> None:
        for name in host.samplers()[:3]:
            (drawn,) = self.draw(host, PLAIN, sampler=quick(name=name))
            assert pixels(drawn).std() > 0
