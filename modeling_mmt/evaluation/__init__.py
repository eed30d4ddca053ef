"""Embeddings of a corpus, the rank of every query, and what is computed from ranks."""
