"""Search: an index, exact search, and other engines."""
