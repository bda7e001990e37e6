"""A short turn of `python -m tests.chaos`, each time with other faults."""

from __future__ import annotations

import random

import pytest

from tests.chaos import hurt


@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    "queue",
    ["celery-redis", pytest.param("celery-rabbitmq", marks=pytest.mark.xdist_group("rabbitmq")), "celery-gevent", "rq"],
)
def test_whatever_happens_every_item_is_done_once(queue: str):
    seed = random.randrange(1_000_000)
    outcome = hurt(queue, minutes=0.7, seed=seed)
    assert outcome.is_good, f"seed {seed}:\n{outcome}"
    assert 0 < outcome.runs
