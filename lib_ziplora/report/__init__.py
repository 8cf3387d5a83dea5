"""What is known of a finished merge."""
