"""The ONNX front end: files and `ModelProto`s. It never imports torch."""
