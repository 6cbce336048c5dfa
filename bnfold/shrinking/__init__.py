"""Channels that carry nothing leave a network: the algebra, in numpy alone. `frontends.onnx.shrink` carries it out."""
