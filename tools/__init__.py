"""The command line and the project's own scripts."""
