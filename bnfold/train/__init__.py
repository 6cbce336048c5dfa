"""Retraining: the loop, what it makes small, and where it goes on."""
