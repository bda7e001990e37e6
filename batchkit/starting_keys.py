"""What the keys of starts begin with, by who has made them."""

from __future__ import annotations

#: A key that a user has given, with `job.using(key=...)`; it is good for ever.
KEYS_OF_USERS = "key:"
