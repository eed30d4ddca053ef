"""Names on the Hub: asked for once, before a client that would try every file again for half a minute."""

from pathlib import Path

from huggingface_hub import constants, get_session, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

from modeling_mmt.data.errors import InputError
from modeling_mmt.data.reading import check_hub_name

CONFIG = "config.json"


def check_model_name(name: str, revision: str | None = None):
    """Look whether a model is there to be opened: a folder, in the cache, or on a Hub that answers.

    Where the Hub does not answer and the cache has the model, this process asks it no more.

    Raises:
        InputError: it is not; says why.
    """
    if Path(name).exists():
        return
    url = hf_hub_url(check_hub_name(name), CONFIG, revision=revision)
    try:
        get_session().head(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (HTTPError, OfflineModeIsEnabled) as error:
        if not isinstance(try_to_load_from_cache(name, CONFIG, revision=revision), str):
            raise InputError(
                f"{name} is not a folder here and not in the cache, and {unreachable(error)}; "
                "connect, or give a folder"
            ) from error
        constants.HF_HUB_OFFLINE = True


def unreachable(error: Exception) -> str:
    """Which Hub could not be reached, and why."""
    words = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else next(iter(str(error).splitlines()), "no answer")
    return f"the Hub, {constants.ENDPOINT}, could not be reached ({words})"
