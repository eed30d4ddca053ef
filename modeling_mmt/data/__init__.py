"""Rows, clips and features: what the model reads."""
