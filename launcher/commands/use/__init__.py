"""Subcommands that use a trained model; the launcher's part only, torch comes when it is needed."""
