"""Channels that carry nothing leave a network: the algebra, in numpy. `frontends.onnx.shrinking` carries it out."""
