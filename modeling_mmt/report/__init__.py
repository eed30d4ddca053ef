"""A report about a checkpoint: measures, figures and a page."""
