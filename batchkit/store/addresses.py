"""Addresses of databases as they may be shown: in messages, in logs, on a terminal."""

from __future__ import annotations

import re

from sqlalchemy import URL

#: Drivers take secrets from the query too: password, passwd, sslpassword, aws_secret_access_key.
_SECRET = re.compile("pass|pwd|secret|token|credential", re.IGNORECASE)
_SECRET_IN_TEXT = re.compile(rf"(\w*(?:{_SECRET.pattern})\w*)=[^&\s]*", re.IGNORECASE)
#: What stands before the last @, but for the name of the database's kind.
_USER_IN_TEXT = re.compile(r"^([\w+.-]*:/+)?.*@", re.DOTALL)
_SHOWN_CHARACTERS = 40
_MASK = "***"
_ENCODED_MASK = "=%2A%2A%2A"


def shown(url: URL) -> str:
    """Give an address without its password and without whatever its query holds of that kind."""
    masked = {name: _MASK for name in url.query if _SECRET.search(name)}
    text = url.update_query_dict(masked).render_as_string(hide_password=True)
    return text.replace(_ENCODED_MASK, f"={_MASK}") if masked else text


def shown_text(text: str) -> str:
    """Give the beginning of a text that should have been an address, without what may be a password in it."""
    without_user = _USER_IN_TEXT.sub(rf"\1{_MASK}@", text)
    return repr(_SECRET_IN_TEXT.sub(rf"\1={_MASK}", without_user)[:_SHOWN_CHARACTERS])
