"""What counts as the same, on which inputs, and where models part."""
