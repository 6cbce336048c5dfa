"""PyTorch files: read and written."""
