"""What messages show, and what they do not."""

import pytest

from modeling_mmt.data.wording import without_passwords


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/a?versionId=7 is there", "s3://bucket/a?versionId=7 is there"),
        ("ftp://bob:pa:ss@host/x: bob:pa:ss@host is down", "ftp://bob:***@host/x: bob:***@host is down"),
        ("'https://h/x?sv=1&sig=a%2Fb&st=2'", "'https://h/x?sv=1&sig=***&st=2'"),
        ("GET https://h/x?X-Amz-Signature=0af1#t", "GET https://h/x?X-Amz-Signature=***#t"),
        ("http://h:6333?api_key=k1 and ?Access_Token=k2", "http://h:6333?api_key=*** and ?Access_Token=***"),
        ("no URL: user:word@host", "no URL: user:word@host"),
    ],
)
def test_secrets_in_urls_become_stars(text, shown):
    assert without_passwords(text) == shown
