"""Channels that carry nothing leave a network: the algebra, in numpy. `onnx.shrinking` carries it out."""
