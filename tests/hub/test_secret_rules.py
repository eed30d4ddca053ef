"""Private keys and the tokens of other services are found before anything is sent; ordinary texts are not."""

import json
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_mmt.hub import publish as publishing
from modeling_mmt.hub.publish import PublishError
from modeling_mmt.hub.secret_rules import found_in, own_secrets, token_rules

A, DIGITS, HEX = "Ab3" * 30, "0123456789" * 3, "0a1b2c3d4e5f" * 6
SECRETS = {  # each put together here, so that no scanner of this repository takes it for one
    "RSA key": "-----BEGIN " + "RSA PRIVATE KEY-----",
    "OpenSSH key": "-----BEGIN " + "OPENSSH PRIVATE KEY-----",
    "PKCS 8 key": "-----BEGIN " + "PRIVATE KEY-----",
    "encrypted key": "-----BEGIN " + "ENCRYPTED PRIVATE KEY-----",
    "PGP key": "-----BEGIN " + "PGP PRIVATE KEY BLOCK-----",
    "PuTTY": "PuTTY-User-Key-" + "File-3: ssh-ed25519",
    "AWS": "AKIA" + "Z3" * 8,
    "Azure": "AccountKey=" + A[:88],
    "GitHub": "ghp_" + A[:36],
    "GitHub, fine-grained": "github_pat_" + A[:22] + "_" + A[:59],
    "GitLab": "glpat-" + A[:20],
    "Google": "AIza" + A[:35],
    "Anthropic": "sk-ant-" + "api03-" + A[:40],
    "OpenAI": "sk-" + A[:20] + "T3Blbk" + "FJ" + A[:20],
    "Slack": "xoxb-" + "1234-5678-" + "abcdef",
    "Slack hook": "https://hooks.slack" + ".com/services/T00/B00/XXX",
    "Stripe": "sk_live" + "_" + A[:24],
    "SendGrid": "SG." + A[:22] + "." + A[:43],
    "Telegram": DIGITS[:9] + ":" + A[:35],
    "Twilio": "SK" + HEX[:32],
    "Mailchimp": HEX[:32] + "-us12",
    "Discord": "M" + A[:23] + "." + A[:6] + "." + A[:27],
    "Square": "sq0csp-" + A[:43],
    "npm": "//registry.npmjs.org/:_auth" + "Token=npm_" + A[:36],
    "PyPI": "pypi-" + "AgEIcHlwaS5vcmc" + A[:70],
    "JWT": "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxIn0." + A[:43],
    "Hugging Face": "hf_" + A[:34],
    "password in an address": "https://ann:" + "hunter2@hub.example/x",
}
PLAIN = [
    json.dumps({"sha256": HEX[:64], "revision": HEX[:40], "seconds": 12345678.9, "ids": ["APPLICATION", "AKC"]}),
    "A dog runs. https://example.org:8080/a@b, ann@example.org; BEGIN PUBLIC KEY; sk-learn; hf_hub; key: value",
    "kitchen/kettle.mp4#8.0-16.0 骑自行车的人 con mèo пожарная машина 12:34:56,789 --> 12:34:58,000",
    " ".join(f"token_{number}" for number in range(3000)),
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the scan asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("name", ["notes.md", "recipe.json", "modeling_mmt.py"])
def test_a_secret_of_any_service_stops_the_upload_and_is_not_shown(tmp_path, kind, name):
    path = tmp_path / name
    path.write_text('{"a": "' + SECRETS[kind] + '"}\n')
    with pytest.raises(PublishError, match=f"{name}, byte .*take it out and revoke it") as refused:
        publishing.check_secrets({name: path}, None)
    assert SECRETS[kind] not in str(refused.value)


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_in_a_row_of_a_compressed_table_is_found_with_its_column(tmp_path, kind):
    for texts in (["a dog", SECRETS[kind]], [["a dog"], ["two", SECRETS[kind]]]):
        table = pa.table({"video_id": ["a", "b"], "caption_en": texts})
        pq.write_table(table, tmp_path / "train.parquet", compression="zstd")
        with pytest.raises(PublishError, match="column caption_en"):
            publishing.check_secrets({"data/train.parquet": tmp_path / "train.parquet"}, None)


@pytest.mark.parametrize("text", PLAIN)
def test_ordinary_texts_pass(tmp_path, text):
    assert list(found_in(text.encode(), token_rules() | own_secrets(None))) == []
    (tmp_path / "a.json").write_text(text)
    publishing.check_secrets({"a.json": tmp_path / "a.json"}, None)


def test_every_file_of_this_repository_that_could_be_published_passes(tmp_path):
    """Code that ships, cards, recipes, vocabularies: a rule that refused one of them would refuse every checkpoint."""
    from pathlib import Path

    root = Path(__file__).resolve().parents[2]
    names = [*root.glob("modeling_mmt/*.py"), *root.glob("**/README.md"), *root.glob("tests/artifacts/**/*.json")]
    names += [*root.glob("modeling_mmt/recipes/**/*.yaml"), *root.glob("results/**/*.json")]
    files = {str(path.relative_to(root)): path for path in names if ".venv" not in path.parts}
    assert len(files) > 50
    publishing.check_secrets(files, None)


def test_noise_is_searched_for_long_secrets_alone(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\0" * 99 + SECRETS["AWS"].encode() + b"\xff" * 99)
    publishing.check_secrets({path.name: path}, None)
    path.write_bytes(b"\0" * 99 + SECRETS["Hugging Face"].encode() + b"\xff" * 99)
    with pytest.raises(PublishError, match="model.safetensors, byte 99: an access token of Hugging Face"):
        publishing.check_secrets({path.name: path}, None)
