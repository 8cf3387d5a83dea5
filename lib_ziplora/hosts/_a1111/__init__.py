"""Parts of the Automatic1111 adapter: its model, its LoRAs, its text encoders, and how all is put back."""
