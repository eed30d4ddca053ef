"""Detection of secrets: tokens and private keys by detect-secrets' rules, and the secrets of this environment.

Only the patterns of detect-secrets are taken: they are searched here, over bytes. Its verification, which sends what
it found to the service that it may belong to, is never called; no text leaves the machine.
"""

import os
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

# Rules for what has a form of its own. Left out are those that guess: by the name of a variable (keyword, IBM,
# SoftLayer, Cloudant), by entropy (every hash of a card), by short prefixes (Artifactory: "AP..." is in every
# vocabulary), and addresses, of machines and with passwords, of which there is a stricter rule below.
PLUGINS = "aws azure_storage_key discord github_token gitlab_token jwt mailchimp npm openai private_key pypi_token"
PLUGINS += " sendgrid slack square_oauth stripe telegram_token twilio"
HUB_RULES = {  # so long that they are not found by chance in a file of noise
    "an access token of Hugging Face": re.compile(rb"hf_[A-Za-z0-9]{30,}"),
    "an address with a password": re.compile(rb"https?://[^\s/:@\"]{1,64}:[^\s/:@\"]{1,128}@"),
}
NEWER_RULES = {  # than detect-secrets' last release
    "a private key": re.compile(rb"BEGIN ENCRYPTED PRIVATE KEY|PuTTY-User-Key-File-3"),
    "a GitHub token": re.compile(rb"github_pat_[0-9A-Za-z_]{60,}"),
    "a Google API key": re.compile(rb"AIza[0-9A-Za-z_-]{35}"),
    "an Anthropic key": re.compile(rb"sk-ant-[0-9A-Za-z_-]{20,}"),
}
SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|KEY)$")  # of a variable, such as WANDB_API_KEY
SECRET_LENGTH = 12  # a shorter value is found by chance

Rules = dict[str, re.Pattern[bytes]]


@cache
def token_rules() -> Rules:
    """What is found, in words, to its pattern: the tokens and keys of many services."""
    from detect_secrets.plugins.base import RegexBasedDetector

    found: Rules = {}
    for name in PLUGINS.split():
        module = import_module(f"detect_secrets.plugins.{name}")
        for detector in vars(module).values():
            if isinstance(detector, type) and detector.__module__ == module.__name__:
                assert issubclass(detector, RegexBasedDetector)
                patterns: Any = detector.denylist
                found[f"a secret ({detector.secret_type})"] = re.compile(b"|".join(map(_of_bytes, patterns)))
    return NEWER_RULES | found


def _of_bytes(pattern: re.Pattern[str]) -> bytes:
    """A pattern over bytes, in a group with its flags."""
    flags = "i" * bool(pattern.flags & re.IGNORECASE) + "x" * bool(pattern.flags & re.VERBOSE)
    return f"(?{flags}:{pattern.pattern})".encode()


def own_secrets(token: str | None) -> Rules:
    """The secrets of this environment, and the Hub's token, whatever they look like; and Hugging Face's tokens."""
    secrets = {token or ""} | {value for name, value in os.environ.items() if SECRET_NAME.search(name)}
    words = [re.escape(secret.encode()) for secret in sorted(secrets) if len(secret) >= SECRET_LENGTH]
    return HUB_RULES | ({"a secret of this environment": re.compile(b"|".join(words))} if words else {})


def found_in(content: object, rules: Rules) -> Iterator[tuple[str, int]]:
    """What is found in bytes, or what has a buffer of them, and at which byte."""
    if re.compile(b"|".join(b"(?:%b)" % rule.pattern for rule in rules.values())).search(content):  # type: ignore[call-overload]
        for name, rule in rules.items():
            if match := rule.search(content):  # type: ignore[call-overload]
                yield name, match.start()
