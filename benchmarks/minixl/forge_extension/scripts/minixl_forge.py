"""A Forge extension of its own, for MiniXL only: teaches Forge the sizes of MiniXL's model.

Forge guesses a checkpoint's kind from its tensors; what they don't say (heads, groups of the norms, width
of the size embedding) is said here. Configurations and tokenizers come from ``benchmarks/minixl/model``.
"""

from functools import wraps
from pathlib import Path
from typing import ClassVar

from backend import loader, operations
from backend.diffusion_engine import sdxl
from backend.nn.unet import Timestep
from huggingface_guess import model_list

MODEL = Path(__file__).resolve().parents[2] / "model"
GROUPS = {"unet": 16, "vae": 4}
"""Part of the model -> groups of its norms; SDXL has 32 in both."""
SIZE_EMBEDDING = 32


class MiniXL(model_list.SDXL):
    """An SDXL, so that Forge builds its engine for it, with MiniXL's sizes."""

    huggingface_repo = str(MODEL)  # joined to Forge's own folder, of which an absolute path leaves nothing
    unet_config: ClassVar = {
        "model_channels": 32,
        "use_linear_in_transformer": True,
        "context_dim": 128,
        "adm_in_channels": 256,
        "use_temporal_attention": False,
    }
    unet_extra_config: ClassVar = {"num_heads": -1, "num_head_channels": 32}


def noting_the_part(load_component):
    """Forge's function that builds one part of a model, which leaves behind whose norms are built."""

    @wraps(load_component)
    def load(guess, component_name, *args, **kwargs):
        loader.minixl_groups = GROUPS.get(component_name) if type(guess).__name__ == "MiniXL" else None
        try:
            return load_component(guess, component_name, *args, **kwargs)
        finally:
            loader.minixl_groups = None

    return load


def with_groups(init):
    """``GroupNorm.__init__`` with MiniXL's groups while its parts are built."""

    @wraps(init)
    def grouped(self, num_groups, *args, **kwargs):
        init(self, loader.minixl_groups or num_groups, *args, **kwargs)

    return grouped


def with_embedding(init):
    """SDXL's engine with MiniXL's size embedding."""

    @wraps(init)
    def embedded(self, estimated_config, huggingface_components):
        init(self, estimated_config, huggingface_components)
        if type(estimated_config).__name__ == "MiniXL":
            self.embedder = Timestep(SIZE_EMBEDDING)

    return embedded


if not hasattr(loader, "minixl_groups"):  # Reload UI runs this again
    loader.minixl_groups = None
    model_list.models.insert(0, MiniXL)
    loader.load_huggingface_component = noting_the_part(loader.load_huggingface_component)
    norm = operations.ForgeOperations.GroupNorm
    norm.__init__ = with_groups(norm.__init__)
    sdxl.StableDiffusionXL.__init__ = with_embedding(sdxl.StableDiffusionXL.__init__)
