"""What is judged: ONNX models, modules and exported programs, run and looked into."""
