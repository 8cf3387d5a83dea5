"""What Forge, Forge Neo, reForge and Forge Classic have in common: patched model objects, LoRAs put on lazily."""
