"""Whether a checkpoint is an SDXL base model, judged by its UNet (sgm's names) and its text encoders."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ...errors import HostError

NEED = "Choose an SDXL base checkpoint at the top of the page."
LATENT_CHANNELS = 4


def check_base(name: str, unet: nn.Module, encoders: Mapping[int, int]) -> None:
    """Refuse what has an SDXL's UNet but is no base model.

    Args:
        name: the checkpoint's, for the sentence.
        unet: sgm's ``UNetModel``, or a copy of it with the same names.
        encoders: kohya's number of each CLIP text model -> its width.

    Raises:
        HostError: the refiner, an inpainting or editing model, a UNet that attends to something else.
    """
    if set(encoders) == {2}:
        raise HostError(f"{name} is the SDXL refiner, which LoRAs are not made for. {NEED}")
    weights = {path.removesuffix(".weight"): weight for path, weight in unet.named_parameters()}
    if set(encoders) != {1, 2} or not any(path.startswith("label_emb.") for path in weights):
        raise HostError(f"{name} lacks SDXL's two text encoders or its size conditioning. {NEED}")
    channels = weights["input_blocks.0.0"].shape[1]
    if channels != LATENT_CHANNELS:
        raise HostError(
            f"{name} takes {channels} input channels instead of {LATENT_CHANNELS}: "
            f"an inpainting or editing model. {NEED}"
        )
    given, taken = sum(encoders.values()), _context_width(weights)
    if given != taken:
        raise HostError(
            f"{name}'s UNet attends to {taken} text features, but its encoders give {given}. {NEED}"
        )


def _context_width(weights: Mapping[str, Tensor]) -> int:
    """Input width of the first cross-attention's keys; 0 where there is no cross-attention."""
    return next((int(weight.shape[1]) for path, weight in weights.items() if path.endswith("attn2.to_k")), 0)
