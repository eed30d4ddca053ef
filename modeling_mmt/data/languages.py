"""The languages of the paper: English, which models are fine-tuned on, and eight that they are searched in unseen."""

LANGUAGES = ("en", "de", "fr", "cs", "zh", "ru", "vi", "sw", "es")
