"""ZipLoRA for Stable Diffusion XL: merge a subject LoRA and a style LoRA into one.

The package imports with torch, safetensors and numpy alone; the WebUI, gradio and
diffusers are touched only by the modules that are named after them.
"""

__version__ = "0.1.0"
