"""The notice that an instance is being drained, and when it counts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from batchkit.doctor.hooks import hook_findings
from batchkit.draining import DrainNotice


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder of the notice."""
    monkeypatch.setenv("BATCHKIT_RUN_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


def change(notice: DrainNotice, **facts: object) -> None:
    notice.path.write_text(json.dumps({**json.loads(notice.path.read_text()), **facts}))


def test_a_notice_counts_until_it_is_taken_down():
    notice = DrainNotice("pod-1")
    assert not notice.look()
    notice.put_up(seconds=60)
    assert DrainNotice("pod-1").is_there
    assert not DrainNotice("pod-2").look(), "it is another instance"
    notice.take_down()
    notice.take_down()
    assert not notice.look()


def test_a_notice_ends_by_itself():
    notice = DrainNotice("pod-1")
    notice.put_up(seconds=60)
    change(notice, ends_at=1.0)
    assert not notice.look()


def test_a_notice_of_another_boot_or_of_the_container_before_does_not_count():
    notice = DrainNotice("pod-1")
    notice.put_up(seconds=60)
    change(notice, boot="another")
    assert not notice.look()


@pytest.mark.parametrize("text", ["", "[]", "{}", "not JSON", '{"boot": null, "ends_at": "soon"}'])
def test_what_is_no_notice_does_not_count(text: str):
    notice = DrainNotice("pod-1")
    notice.put_up(seconds=60)
    notice.path.write_text(text)
    assert not notice.look()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_notice_of_another_user_does_not_count():
    notice = DrainNotice("pod-1")
    notice.put_up(seconds=60)
    os.chown(notice.path, 12345, 12345)
    assert not notice.look()


def test_the_name_of_an_instance_may_hold_anything(folder: Path):
    notice = DrainNotice("../../worker.1 / x")
    notice.put_up(seconds=60)
    assert folder == notice.path.parent
    assert notice.look()


@pytest.mark.parametrize(
    ("hooks", "grace", "queue", "checks"),
    [
        ([], None, "RQQueue", []),
        (["Light"], 30.0, "CeleryQueue", []),
        (["Light"], None, "CeleryQueue", ["hooks-without-grace"]),
        (["Light"], 30.0, "RQQueue", ["hooks-of-stock-workers"]),
    ],
)
def test_the_doctor_says_which_hooks_tell_nothing(hooks: list[str], grace: float | None, queue: str, checks: list[str]):
    assert checks == [finding.check for finding in hook_findings(hooks, grace=grace, queue=queue)]
