"""Run by the WebUI before it starts.

Nothing to install: torch, safetensors, numpy and gradio are part of every WebUI, and the
extension must not change their versions.
"""
