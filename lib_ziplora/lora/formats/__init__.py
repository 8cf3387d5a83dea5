"""Names, families and shapes of LoRA files."""
