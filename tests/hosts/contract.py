"""What every ``Host`` promises. An adapter's tests subclass ``HostContract`` and give its fixtures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_ziplora.errors import IncompatibleError, LoraFileError, OutputError
from lib_ziplora.hosts import Host, Progress

SIZE = 64
PROMPTS = ("a cat icon in kim style", "a dog icon in drew style")


class Boom(Exception):
    """Raised inside a session by the tests."""


def snapshot(parts: Sequence[nn.Module]) -> list[tuple[str, Tensor, bool]]:
    """Copies of every parameter and buffer, with its requires_grad flag."""
    tensors = [item for part in parts for item in (*part.named_parameters(), *part.named_buffers())]
    return [(name, tensor.detach().clone(), tensor.requires_grad) for name, tensor in tensors]


def flags(parts: Sequence[nn.Module]) -> list[tuple[bool, int, int]]:
    """Training flag and number of hooks of every module."""
    return [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
        for part in parts
        for m in part.modules()
    ]


def assert_same(before: list[tuple[str, Tensor, bool]], after: list[tuple[str, Tensor, bool]]) -> None:
    """Bit for bit."""
    assert [name for name, _, _ in before] == [name for name, _, _ in after]
    for (name, old, was_required), (_, new, is_required) in zip(before, after, strict=True):
        assert was_required == is_required, name
        assert torch.equal(old, new), name


class HostContract:
    """Needs the fixtures ``host`` and ``parts`` (the modules that must not change), and ``TEXT_LAYER``."""

    TEXT_LAYER = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    SAMPLES_LATENTS = True
    """Whether the VAE draws latents from its distribution (reForge takes the mean)."""

    @pytest.fixture
    def host(self) -> Host:
        raise NotImplementedError

    @pytest.fixture
    def parts(self, host: Host) -> list[nn.Module]:
        raise NotImplementedError

    def encode(self, session: Any, *prompts: str, negative: bool = False, **options: Any) -> Any:
        size = {"width": SIZE, "height": SIZE, "deltas": {}} | options
        return session.encode_prompts(prompts, negative=negative, **size)

    def noisy(self, session: Any, batch: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        shape = (batch, session.denoiser.latent_channels, SIZE // 8, SIZE // 8)
        x_t = torch.randn(shape, generator=generator).to(session.denoiser.device)
        return x_t, torch.linspace(50, 900, batch).long().to(session.denoiser.device)

    def own_text_weight(self, parts: list[nn.Module]) -> Tensor:
        """The checkpoint's weight of ``TEXT_LAYER``."""
        path = self.TEXT_LAYER.split("layers_0_")[1].replace("self_attn_", "self_attn.")
        modules = (
            named for part in parts for named in part.named_modules()
        )  # of two text encoders the first counts
        weight: Tensor = next(m.weight for name, m in modules if name.endswith(f"layers.0.{path}"))
        return weight

    def text_delta(self, session: Any, parts: list[nn.Module]) -> Callable[[], Tensor]:
        """A delta weight that fits ``TEXT_LAYER``."""
        shape = self.own_text_weight(parts).shape
        return lambda: torch.full(shape, 0.25)

    def test_check_accepts_the_model(self, host: Host) -> None:
        host.check()
        assert host.checkpoint().name

    def test_with_the_unet_alone_it_predicts_the_same_and_encodes_afterwards(
        self, host: Host, parts: list[nn.Module]
    ) -> None:
        with host.open() as session, torch.no_grad():
            cond = self.encode(session, *PROMPTS)
            before = snapshot(parts)
            x_t, t = self.noisy(session, 2)
            expected = session.denoiser.predict(x_t, t, cond)
            with session.unet_alone():
                assert torch.equal(session.denoiser.predict(x_t, t, cond), expected)
                session.check_alive()
            assert_same(before, snapshot(parts))
            assert torch.equal(self.encode(session, *PROMPTS).context, cond.context)

    def test_model_is_untouched_after_success(self, host: Host, parts: list[nn.Module]) -> None:
        with host.open() as session:
            self.encode(session, *PROMPTS)  # transformers 5 installs its own hooks in a model's first forward
        parts[0].requires_grad_(True)
        parts[0].train()
        before, before_flags = snapshot(parts), flags(parts)
        with host.open() as session:
            assert not any(p.requires_grad for p in session.denoiser.unet.parameters())
            cond = self.encode(session, *PROMPTS, deltas={self.TEXT_LAYER: self.text_delta(session, parts)})
            x_t, t = self.noisy(session, 2)
            session.denoiser.predict(x_t.requires_grad_(), t, cond).sum().backward()
            session.check_alive()
        assert_same(before, snapshot(parts))
        assert flags(parts) == before_flags
        assert all(p.grad is None for part in parts for p in part.parameters())

    def test_model_is_untouched_after_an_exception(self, host: Host, parts: list[nn.Module]) -> None:
        parts[0].requires_grad_(True)
        before, before_flags = snapshot(parts), flags(parts)
        with pytest.raises(Boom), host.open():
            raise Boom
        assert_same(before, snapshot(parts))
        assert flags(parts) == before_flags

    def test_a_second_session_gives_the_same_prediction(self, host: Host) -> None:
        outputs = []
        for _ in range(2):
            with host.open() as session, torch.no_grad():
                outputs.append(
                    session.denoiser.predict(*self.noisy(session, 2), self.encode(session, *PROMPTS))
                )
        assert torch.equal(*outputs)

    def test_prediction_has_the_latents_shape_in_fp32(self, host: Host) -> None:
        with host.open() as session, torch.no_grad():
            x_t, t = self.noisy(session, 2)
            output = session.denoiser.predict(x_t, t, self.encode(session, *PROMPTS))
        assert output.shape == x_t.shape
        assert output.dtype == torch.float32
        assert torch.isfinite(output).all()

    def test_rows_of_a_batch_do_not_mix(self, host: Host) -> None:
        with host.open() as session, torch.no_grad():
            cond = self.encode(session, *PROMPTS)
            x_t, t = self.noisy(session, 2)
            both = session.denoiser.predict(x_t, t, cond)
            alone = session.denoiser.predict(x_t[1:], t[1:], cond[1:])
        torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-4)

    def test_prediction_is_differentiable(self, host: Host) -> None:
        with host.open() as session:
            x_t, t = self.noisy(session, 1)
            x_t.requires_grad_()
            session.denoiser.predict(x_t, t, self.encode(session, PROMPTS[0])).square().mean().backward()
        assert x_t.grad is not None
        assert torch.isfinite(x_t.grad).all()
        assert x_t.grad.abs().sum() > 0

    def test_native_size_is_a_size(self, host: Host) -> None:
        with host.open() as session:
            assert session.native_size >= 64
            assert session.native_size % 64 == 0

    def test_schedule_falls_from_one_to_zero(self, host: Host) -> None:
        with host.open() as session:
            alphas = session.denoiser.alphas_cumprod
        assert alphas.dtype == torch.float32
        assert alphas.device.type == "cpu"
        assert bool((alphas[1:] < alphas[:-1]).all())
        assert alphas[0] > 0.99
        assert alphas[-1] < 0.01

    def test_checkpoint_blocks_are_the_unets_own(self, host: Host) -> None:
        with host.open() as session:
            blocks, modules = session.denoiser.checkpoint_blocks(), set(session.denoiser.unet.modules())
        assert blocks
        assert all(block in modules for block in blocks)

    def test_empty_negative_prompt_is_zeros_and_only_that(self, host: Host) -> None:
        with host.open() as session:
            rows = self.encode(session, "", PROMPTS[0], negative=True)
            plain = self.encode(session, PROMPTS[0])
        assert rows.context[0].abs().max() == 0
        torch.testing.assert_close(rows.context[1:], plain.context, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rows.vector[1:], plain.vector, rtol=1e-4, atol=1e-5)

    def test_conditioning_knows_prompt_and_size(self, host: Host) -> None:
        with host.open() as session:
            one = self.encode(session, PROMPTS[0])
            other_prompt = self.encode(session, PROMPTS[1])
            other_size = self.encode(session, PROMPTS[0], height=2 * SIZE)
        assert not torch.allclose(one.context, other_prompt.context)
        assert torch.equal(one.context, other_size.context)
        assert not torch.allclose(one.vector, other_size.vector)

    def test_long_prompt_keeps_its_end(self, host: Host) -> None:
        long = " ".join(["cat"] * 100)
        with host.open() as session:
            one, other = self.encode(session, f"{long} dog"), self.encode(session, f"{long} rose")
        assert one.context.shape[1] == 154
        assert not torch.allclose(one.context, other.context)

    def test_text_deltas_act_and_are_taken_off(self, host: Host, parts: list[nn.Module]) -> None:
        with host.open() as session:
            base = self.encode(session, PROMPTS[0])
            before = snapshot(parts)
            delta = self.text_delta(session, parts)
            changed = self.encode(session, PROMPTS[0], deltas={self.TEXT_LAYER: delta})
            assert_same(before, snapshot(parts))
            again = self.encode(session, PROMPTS[0])
        assert not torch.allclose(base.context, changed.context)
        assert torch.equal(base.context, again.context)
        assert torch.equal(base.vector, again.vector)

    def test_a_text_weight_is_the_checkpoints_own(self, host: Host, parts: list[nn.Module]) -> None:
        with host.open() as session:
            weight = session.text_weight(self.TEXT_LAYER)
            assert session.text_weight(f"{self.TEXT_LAYER}_too") is None
        assert weight is not None and weight.device.type == "cpu" and not weight.requires_grad
        assert torch.equal(weight, self.own_text_weight(parts).cpu())
        assert (weight.float() + 0.0).isfinite().all()  # an inference tensor can be reckoned with

    def test_text_deltas_are_taken_off_when_one_fails(self, host: Host, parts: list[nn.Module]) -> None:
        def fails() -> Tensor:
            raise Boom

        second = self.TEXT_LAYER.replace("q_proj", "k_proj")
        with host.open() as session:
            before = snapshot(parts)
            deltas = {self.TEXT_LAYER: self.text_delta(session, parts), second: fails}
            with pytest.raises(Boom):
                self.encode(session, PROMPTS[0], deltas=deltas)
            assert_same(before, snapshot(parts))

    def test_unknown_text_layer_is_named(self, host: Host, parts: list[nn.Module]) -> None:
        name = self.TEXT_LAYER.replace("layers_0", "layers_99")
        with host.open() as session:
            before = snapshot(parts)
            with pytest.raises(IncompatibleError, match=name):
                self.encode(session, PROMPTS[0], deltas={name: lambda: torch.zeros(1, 1)})
            assert_same(before, snapshot(parts))

    def test_text_delta_of_another_shape_is_named(self, host: Host, parts: list[nn.Module]) -> None:
        with host.open() as session:
            before = snapshot(parts)
            with pytest.raises(IncompatibleError, match=self.TEXT_LAYER):
                self.encode(session, PROMPTS[0], deltas={self.TEXT_LAYER: lambda: torch.zeros(3, 5)})
            assert_same(before, snapshot(parts))

    def test_image_latents_depend_on_the_seed_alone(self, host: Host) -> None:
        images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        with host.open() as session:
            first, other, again = (session.encode_images(images, seed=seed) for seed in (1, 2, 1))
        assert first.shape == (2, 4, SIZE // 8, SIZE // 8)
        assert first.dtype == torch.float32
        assert torch.equal(first, again)
        assert torch.equal(first, other) == (not self.SAMPLES_LATENTS)

    def test_encoding_leaves_the_global_random_state(self, host: Host) -> None:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        with host.open() as session:
            self.encode(session, PROMPTS[0])
            session.encode_images(torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator()), seed=1)
            session.denoiser.predict(*self.noisy(session, 1), self.encode(session, PROMPTS[0]))
        assert torch.equal(torch.rand(3), expected)

    def test_installed_loras_resolve(self, host: Host) -> None:
        listed = host.loras()
        assert [entry.name for entry in listed] == sorted(
            (e.name for e in listed), key=lambda n: (n.casefold(), n)
        )
        assert listed
        for entry in listed:
            assert host.resolve(entry.name) == entry.path
            assert entry.path.is_file()

    def test_unknown_lora_is_named(self, host: Host) -> None:
        with pytest.raises(LoraFileError, match="no-such-lora"):
            host.resolve("no-such-lora")

    def test_output_is_a_file_of_that_name(self, host: Host) -> None:
        path = host.output_path("a new merge")
        assert path.name == "a new merge.safetensors"
        assert path.parent.is_dir()
        for name in ("merges/2026/a new merge", "merges\\2026\\a new merge"):
            assert host.output_path(name) == path.parent / "merges" / "2026" / path.name
        assert not (path.parent / "merges").exists()

    @pytest.mark.parametrize(
        "name", ["../x", "/x", "a/../x", "a//x", "a/", "\\\\a\\x", "C:\\x", ".a/x", "nul/x", "a./x"]
    )
    def test_folders_that_cannot_be(self, host: Host, name: str) -> None:
        with pytest.raises(OutputError):
            host.output_path(name)

    @pytest.mark.parametrize(
        "name", ["", " ", ".hidden", "a:b", "con", "NUL.x", "a\x00b", "a\nb", "<lora>", "x" * 300]
    )
    def test_output_names_that_cannot_be(self, host: Host, name: str) -> None:
        with pytest.raises(OutputError):
            host.output_path(name)

    def test_flags_begin_down(self, host: Host) -> None:
        with host.exclusive():
            assert not host.interrupted()
            assert not host.finish_requested()
            host.finish_now()
            assert host.finish_requested()
            host.interrupt()
            assert host.interrupted()
        with host.exclusive():
            assert not host.interrupted()
            assert not host.finish_requested()

    def test_progress_can_be_reported(self, host: Host) -> None:
        host.report(Progress("sampling", 1, 10, None, "Sampling", {}))
