"""Reading and writing LoRA files."""
