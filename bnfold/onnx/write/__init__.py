"""Edits of an ONNX model, and the file that holds it."""
