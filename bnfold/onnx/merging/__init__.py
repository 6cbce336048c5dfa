"""Linear layers of ONNX models that become one."""
