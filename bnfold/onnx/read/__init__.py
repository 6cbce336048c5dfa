"""From ONNX to the neutral graph."""
