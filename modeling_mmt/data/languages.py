"""The paper's languages: English, used for fine-tuning, and eight that are searched without captions."""

LANGUAGES = ("en", "de", "fr", "cs", "zh", "ru", "vi", "sw", "es")
