"""
Export 50,000 orders to an object store, by a multipart upload: `python -m examples.export_multipart`.

Kill it and call it again: the object is exact to the byte, and is seen only once it is whole. The store is a folder
here, which keeps to the rules of S3's `create_multipart_upload`, `upload_part` and `complete_multipart_upload`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from batchkit import BatchKit, Chunk, Finish, Run, Source, batched, span
from batchkit.cli.working import run_with_bar

DATABASE_URL = os.environ.get("BATCHKIT_DATABASE_URL", "sqlite:///batchkit-example.db")
BUCKET = Path("batchkit-example-bucket")
ORDERS = 50_000
#: S3 does not complete an upload with a part of less than 5 MiB before the last; here it is less.
SMALLEST_PART = 16 * 1024

kit = BatchKit(DATABASE_URL)


# The store


class NoSuchUpload(Exception):
    """Raised when an upload is completed or aborted already, or never was."""


class InvalidPart(Exception):
    """Raised when a part is not there, is another than was meant, or is too small."""


def create_upload() -> str:
    """Begin an upload; nothing is seen of it before it is complete."""
    upload = secrets.token_hex(8)
    (BUCKET / "uploads" / upload).mkdir(parents=True)
    return upload


def put_part(upload: str, number: int, data: bytes) -> str:
    """Keep a part and give its ETag; the same number again takes the place of what was there."""
    folder = BUCKET / "uploads" / upload
    if not folder.exists():
        raise NoSuchUpload(upload)
    unfinished = folder / secrets.token_hex(8)
    unfinished.write_bytes(data)
    unfinished.replace(folder / f"{number:05}")
    return _etag(data)


def complete(upload: str, key: str, etags: Sequence[str]) -> None:
    """Make the object of the parts with these ETags, in one move, and forget the upload."""
    folder = BUCKET / "uploads" / upload
    if not folder.exists():
        raise NoSuchUpload(upload)
    parts = [(folder / f"{number:05}").read_bytes() for number in range(1, len(etags) + 1)]
    for number, (part, etag) in enumerate(zip(parts, etags, strict=True), start=1):
        if _etag(part) != etag or (len(part) < SMALLEST_PART and number < len(etags)):
            raise InvalidPart(number)
    unfinished = folder / "object"
    unfinished.write_bytes(b"".join(parts))
    unfinished.replace(BUCKET / key)
    shutil.rmtree(folder)


def _etag(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


# The job


def orders(key: str) -> Source[int]:  # noqa: ARG001  each run has its object
    """Say where the items come from: the numbers of the orders."""
    return span(1, ORDERS + 1)


def record(number: int) -> str:
    """Write an order as a line of JSON."""
    return json.dumps({"number": number, "amount": f"{number % 997}.{number % 100:02}"}) + "\n"


def complete_export(finish: Finish, key: str) -> str:
    """Send the rest as the last part, and complete the upload."""
    (carry,) = finish.carries
    upload, etags, rest = str(carry["upload"]), cast("list[str]", carry["etags"]), str(carry["rest"])
    try:
        if rest:
            etags = [*etags, put_part(upload, len(etags) + 1, rest.encode())]
        complete(upload, key, etags)
    except NoSuchUpload:
        # It was completed by a worker that died before this run's end was committed; S3 says so with the same error.
        # If somebody had aborted it instead, there would be no object.
        if not (BUCKET / key).exists():
            raise
    return key


# Choose a chunk size that makes a part of most chunks. What a smaller one leaves waits in the carry, which is written
# with each checkpoint: a few MiB there cost more than anything else in the chunk.
@batched(orders, chunk_size=1000, lease=5, finish=complete_export)
def export(chunk: Chunk[int], key: str) -> None:  # noqa: ARG001  the source needs it
    """
    Upload a chunk of orders.

    What the carry says commits with the chunk. A part that was uploaded by a chunk that was rolled back has a number
    that the next try uses again, and is replaced by that. A worker that wakes up past its lease may replace a part that
    another has committed, though, with one of other content if the orders have changed meanwhile: `complete` compares
    the ETags and refuses. Then nothing wrong is published; rerun the run.
    """
    if "upload" not in chunk.carry:
        # Where the process dies before the commit, this one is left over. On S3 a lifecycle rule aborts such uploads
        # (AbortIncompleteMultipartUpload), so give it more days than a run takes.
        chunk.carry.update(upload=create_upload(), etags=[], rest="")
    data = str(chunk.carry["rest"]) + "".join(record(number) for number in chunk)
    if len(data.encode()) < SMALLEST_PART:
        chunk.carry["rest"] = data
        return
    etags = cast("list[str]", chunk.carry["etags"])  # S3 takes 10,000 parts at most
    etag = put_part(str(chunk.carry["upload"]), len(etags) + 1, data.encode())
    chunk.carry.update(etags=[*etags, etag], rest="")


def unfinished_or_new_run() -> Run:
    """Give the run that was not finished last time, else a new one."""
    for unfinished in kit.runs(job=export.name, state=["queued", "running"], limit=1):
        return unfinished
    return export.start(key=f"orders-{secrets.token_hex(4)}.jsonl")


def main() -> int:
    """Export, then compare the object with what is expected."""
    kit.migrate()
    BUCKET.mkdir(exist_ok=True)
    run = unfinished_or_new_run()
    code = run_with_bar(kit, run, again="python -m examples.export_multipart")
    if code:
        return code
    found = (BUCKET / str(run.result)).read_bytes()
    is_exact = found == "".join(record(number) for number in range(1, ORDERS + 1)).encode()
    print(f"{run.result} has {len(found):,} bytes and is {'exact to the byte' if is_exact else 'WRONG'}")
    return 0 if is_exact else 1


if __name__ == "__main__":
    sys.exit(main())
