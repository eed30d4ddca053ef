"""The verbs of `mmt`."""
