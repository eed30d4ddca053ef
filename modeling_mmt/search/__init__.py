"""Clips found for queries: an index, exact search, and other engines."""
