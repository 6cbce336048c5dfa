"""Edits of modules and exported programs."""
