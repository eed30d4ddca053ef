"""A recipe, its stages and their steps."""
