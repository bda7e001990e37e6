"""What Prometheus reads: scraped over HTTP, or given by a registry, and parsed by its own client."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from batchkit import BatchKit, Chunk, Run, RunState, batched, span
from batchkit.contrib.prometheus import BatchkitCollector
from batchkit.queues import LocalQueue
from batchkit.sources import Source
from batchkit.stopping import Stop
from tests.waiting import eventually

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(exposed: str) -> Samples:
    """Give each sample by its name and labels."""
    families = list(text_string_to_metric_families(exposed))
    assert all(each.documentation and each.type in {"gauge", "counter"} for each in families)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """Give one sample."""
    return samples[f"batchkit_{name}", frozenset(labels.items())]


class Scraped:
    """A kit, and the registry that has its metrics."""

    def __init__(self, url: str) -> None:
        self.kit = BatchKit(url, queue=LocalQueue(), grace=10)
        self.registry = CollectorRegistry()
        # Before there is a table: to register it asks nobody.
        self.registry.register(BatchkitCollector(self.kit, share=1))

    def samples(self) -> Samples:
        """Read the registry as an exporter does."""
        return parsed(generate_latest(self.registry).decode())


@pytest.fixture
def scraped(database_url: str) -> Iterator[Scraped]:
    """Give a kit on each database."""
    made = Scraped(database_url)
    with closing(made.kit):
        made.kit.migrate()
        yield made


#: What the chunk sees that reads the metrics in its middle.
_seen: list[Samples] = []
_scraped: list[Scraped] = []


def _numbers(last: int) -> Source[int]:
    return span(0, last)


@batched(_numbers, name="metrics.looks", chunk_size=5, queue="looks", max_failures=10)
def looks(chunk: Chunk[int], last: int) -> None:
    """Read the metrics while the slice is worked."""
    _seen.append(_scraped[-1].samples())
    for number in chunk:
        if number == 7:
            chunk.fail(number, ValueError("no seven"))


@batched(_numbers, name="metrics.fails", chunk_size=5)
def fails(chunk: Chunk[int], last: int) -> None:
    """Fail at the second chunk."""
    if chunk.number == 2:
        message = "no second chunk"
        raise ValueError(message)


def test_a_slice_shows_while_it_is_worked_and_its_work_when_it_is_done(scraped: Scraped):
    _scraped.append(scraped)
    _seen.clear()
    ended = looks(last=20)
    assert isinstance(ended, Run)
    during = [
        (
            value(each, "busy_slices", queue="looks", interruptible="false"),
            value(each, "busy_slices", queue="looks", interruptible="true"),
            value(each, "workers", queue="looks"),
            value(each, "unfinished_items_done", job="metrics.looks"),
            value(each, "runs", job="metrics.looks", state="running"),
        )
        for each in _seen
    ]
    # Of the first chunk nobody knows yet how long it takes.
    assert [(1, 0, 1, 0, 1), (0, 1, 1, 5, 1), (0, 1, 1, 9, 1), (0, 1, 1, 14, 1)] == during
    assert 20 == value(_seen[1], "unfinished_items_planned", job="metrics.looks")
    after = scraped.samples()
    assert 0 == value(after, "busy_slices", queue="looks", interruptible="true")
    assert 1 == value(after, "runs", job="metrics.looks", state="succeeded")
    assert 19 == value(after, "items_total", job="metrics.looks", outcome="done")
    assert 1 == value(after, "items_total", job="metrics.looks", outcome="failed")
    assert 4 <= value(after, "checkpoints_total", job="metrics.looks")
    assert 0 == value(after, "interruptions_total", job="metrics.looks")
    assert 1 == value(after, "store_up")


def test_what_waits_shows_and_dry_runs_count_for_no_items(scraped: Scraped):
    runs = [looks.using(dry_run=True).start(last=20), looks.start(last=20)]
    samples = scraped.samples()
    assert 2 == value(samples, "runs", job="metrics.looks", state="queued")
    assert (2, 2) == (
        value(samples, "ready_partitions", queue="looks"),
        value(samples, "wanted_workers", queue="looks"),
    )
    assert ("batchkit_unfinished_items_planned", frozenset({("job", "metrics.looks")})) not in samples
    _scraped.append(scraped)
    for run in runs:
        scraped.kit.work_run(run.id, stop=Stop())
    assert 19 == value(scraped.samples(), "items_total", job="metrics.looks", outcome="done")


def test_no_label_is_the_name_of_a_run_or_a_worker(scraped: Scraped):
    run = fails.start(last=20)
    scraped.kit.work_run(run.id, stop=Stop())
    assert RunState.FAILED == run.refresh().state
    samples = scraped.samples()
    labels = {name for _, labels in samples for name, _ in labels}
    assert {"queue", "interruptible", "job", "state", "outcome"} == labels
    exposed = generate_latest(scraped.registry).decode()
    assert run.id not in exposed
    assert f":{os.getpid()}" not in exposed


def test_counters_do_not_fall_when_runs_are_purged(scraped: Scraped):
    _scraped.append(scraped)
    looks(last=20)
    assert 19 == value(scraped.samples(), "items_total", job="metrics.looks", outcome="done")
    assert 1 == scraped.kit.purge(0.000001).runs
    looks(last=20)
    assert 38 == value(scraped.samples(), "items_total", job="metrics.looks", outcome="done")


def test_a_store_that_cannot_be_read_shows_as_down_and_takes_nothing_else_with_it(tmp_path: Path):
    made = Scraped(f"sqlite:///{tmp_path / 'nowhere' / 'batchkit.db'}")
    with closing(made.kit):
        assert {("batchkit_store_up", frozenset()): 0} == made.samples()


def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path, sqlite_url: str):
    (tmp_path / "app.py").write_text(
        "from batchkit import BatchKit, Chunk, batched, span\n"
        f"kit = BatchKit({sqlite_url!r})\n"
        "@batched(span(0, 10), name='ten')\n"
        "def ten(chunk: Chunk[int]) -> None: ...\n"
    )
    batchkit = [sys.executable, "-m", "batchkit", "-A", "app:kit"]
    subprocess.run([*batchkit, "db", "upgrade"], cwd=tmp_path, check=True)
    subprocess.run([*batchkit, "run", "ten"], cwd=tmp_path, check=True)
    log = tmp_path / "log"
    with (
        log.open("w") as stream,
        subprocess.Popen(
            [*batchkit, "metrics", "--port", "0", "--host", "127.0.0.1"], cwd=tmp_path, stderr=stream
        ) as server,
    ):
        try:
            (address,) = eventually(
                lambda: re.findall(r"http://\S+", log.read_text()), within=30, message=log.read_text
            )
            with urllib.request.urlopen(address) as answer:  # noqa: S310  our own server
                assert answer.headers["Content-Type"].startswith("text/plain")
                samples = parsed(answer.read().decode())
            second = subprocess.run(
                [*batchkit, "metrics", "--port", address.split(":")[2].split("/")[0], "--host", "127.0.0.1"],
                cwd=tmp_path,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            server.send_signal(signal.SIGTERM)
            assert 0 == server.wait(timeout=30)
        finally:
            server.kill()
    assert 10 == value(samples, "items_total", job="ten", outcome="done")
    assert (2, True) == (second.returncode, "nothing can listen at 127.0.0.1" in second.stderr)


def test_the_package_that_is_missing_is_named(tmp_path: Path):
    program = "import sys; sys.modules['prometheus_client'] = None; from batchkit.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "metrics"], cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False
    )
    assert (2, True) == (done.returncode, "pip install 'batchkit-jobs[prometheus]'" in done.stderr), done.stderr


def test_what_the_page_shows_runs_and_each_metric_is_on_it():
    page = (Path(__file__).parents[2] / "docs" / "hooks" / "prometheus.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    show = "print(*(each.name + '_total' * (each.type == 'counter') for each in BatchkitCollector(kit).describe()))"
    names = subprocess.run(
        [sys.executable, "-c", block + show], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split()
    assert len(names) > 10
    assert set(names) == set(re.findall(r"`(batchkit_\w+)`(?=[ ,])(?= \||, `)", page.partition("**You see**")[0]))


def test_sums_that_take_long_are_kept_for_a_while(sqlite_url: str):
    with closing(BatchKit(sqlite_url, queue=LocalQueue())) as kit:
        kit.migrate()
        registry = CollectorRegistry()
        registry.register(BatchkitCollector(kit, share=1e-9))
        assert 1 == value(parsed(generate_latest(registry).decode()), "store_up")
        looks.start(last=20)
        samples = parsed(generate_latest(registry).decode())
        assert 1 == value(samples, "ready_partitions", queue="looks")
        assert not any(name == "batchkit_runs" for name, _ in samples)
