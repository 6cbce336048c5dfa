"""How an ONNX model lies in memory and on the disk."""
