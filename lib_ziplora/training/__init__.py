"""The algorithm against a host's session."""
