"""LoRA files and low-rank algebra: torch and numpy alone, no model, no host."""
