"""What torch.export sees of a network."""
