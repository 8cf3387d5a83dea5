"""Parts of the diffusers adapter: model, text encoders, drawing."""
