"""Clips through a frozen encoder into a feature store."""
