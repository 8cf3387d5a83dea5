"""One merge from files to file."""
