"""What is installed and remembered."""
