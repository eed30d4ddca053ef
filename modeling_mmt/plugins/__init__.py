"""Adapters to other libraries: MTEB and ONNX."""
