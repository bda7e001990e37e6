"""Addresses of databases as they may be shown: in messages, in logs, on a terminal."""

from __future__ import annotations

import re

from sqlalchemy import URL

#: Drivers take secrets from the query too: password, passwd, sslpassword, aws_secret_access_key.
_SECRET = re.compile("pass|pwd|secret|token|credential", re.IGNORECASE)
_MASK = "***"
_ENCODED_MASK = "=%2A%2A%2A"


def shown(url: URL) -> str:
    """Give an address without its password and without whatever its query holds of that kind."""
    masked = {name: _MASK for name in url.query if _SECRET.search(name)}
    text = url.update_query_dict(masked).render_as_string(hide_password=True)
    return text.replace(_ENCODED_MASK, f"={_MASK}") if masked else text
