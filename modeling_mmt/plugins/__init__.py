"""What joins another library: MTEB and ONNX."""
