"""What Automatic1111 and its forks have in common: LoRA list, queue and progress, txt2img, API access."""
