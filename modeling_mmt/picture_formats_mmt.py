"""Endings of picture files, and which of their formats can be read here; known without torch, to list a folder."""

from functools import lru_cache

try:
    from PIL import Image
except ImportError:
    Image = None  # type: ignore[assignment]

PICTURE_SUFFIXES = {
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "JPEG"),
    **{".gif": "GIF", ".webp": "WEBP", ".avif": "AVIF"},
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIF"),
}
"""Endings of pictures and animations, and Pillow's names of their formats."""


@lru_cache(maxsize=1)
def picture_formats() -> tuple[str, ...]:
    """The formats of `PICTURE_SUFFIXES` that Pillow reads here: AVIF from Pillow 11.3, HEIF where pillow-heif is."""
    if Image is None:
        return ()
    Image.init()
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        pass
    else:
        register_heif_opener()
    return tuple(name for name in dict.fromkeys(PICTURE_SUFFIXES.values()) if name in Image.OPEN)
