"""Language tags as people write them (`EN`, `eng`, `pt_BR`), as BCP 47 has them (`en`, `en`, `pt-BR`)."""

import langcodes


def language_tag(name: str) -> str | None:
    """The shortest BCP 47 tag of a language that is registered; None for any other name, and for `und`, `mul`, `zxx`.

    Args:
        name: a tag in any case, with `-` or `_`, or a code of ISO 639-2, as mp4 and Matroska files have it. `-orig`,
            which video sites put after the language that is spoken, is left out.
    """
    try:
        tag = langcodes.standardize_tag(name.strip().removesuffix("-orig"))
    except ValueError:
        return None
    return tag if langcodes.tag_is_valid(tag) and tag.partition("-")[0] not in ("und", "mul", "mis", "zxx") else None
