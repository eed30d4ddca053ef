"""Figures published by others on other data: shown for orientation, not for comparison.

`MULTI_MSRVTT`: multilingual text-to-video search on MSR-VTT (1,000 test clips of real video, captions translated by
machine), R@1, from Huang et al., "Multilingual Multimodal Pre-training for Zero-Shot Cross-Lingual
Transfer of Vision-Language Models", NAACL 2021, https://arxiv.org/abs/2103.08849.
"""

# model -> R@1 (%) in the order of LANGUAGES, then the published average. "+ translated VTT": trained on all of them.
MULTI_MSRVTT: dict[str, tuple[float, ...]] = {
    "mBERT": (19.9, 11.1, 11.6, 8.2, 6.9, 7.9, 2.7, 1.4, 12.0, 9.1),
    "mBERT-MP": (20.6, 11.3, 11.9, 8.0, 7.1, 7.7, 2.5, 1.1, 12.5, 9.2),
    "mBERT-MMP": (21.8, 15.0, 15.8, 11.2, 8.4, 11.0, 3.7, 3.4, 15.1, 11.7),
    "XLM-R": (21.0, 16.3, 17.4, 16.0, 14.9, 15.4, 7.7, 5.7, 17.3, 14.7),
    "XLM-R-MP": (23.3, 17.4, 18.5, 17.1, 16.3, 17.0, 8.1, 6.2, 18.5, 15.8),
    "XLM-R-MMP": (23.8, 19.4, 20.7, 19.3, 18.2, 19.1, 8.2, 8.4, 20.4, 17.5),
    "mBERT + translated VTT": (19.6, 18.2, 18.0, 16.9, 16.2, 16.5, 8.4, 13.0, 18.5, 16.1),
    "mBERT-MMP + translated VTT": (21.5, 19.1, 19.8, 18.3, 17.3, 18.3, 8.9, 14.1, 20.0, 17.4),
    "XLM-R + translated VTT": (21.5, 19.6, 20.1, 19.3, 18.9, 19.1, 10.3, 12.5, 18.9, 17.8),
    "XLM-R-MMP + translated VTT": (23.1, 21.1, 21.8, 20.7, 20.0, 20.5, 10.9, 14.4, 21.9, 19.4),
}
