"""The notice that an instance is being drained, and when it counts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from batchkit.doctor.hooks import hook_findings
from batchkit.draining import DrainNotice
from batchkit.errors import DrainImpossible


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


def test_without_a_folder_for_it_nothing_is_drained_and_a_drain_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("BATCHKIT_RUN_DIR")

    def nowhere() -> str:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr("batchkit.draining.tempfile.gettempdir", nowhere)
    notice = DrainNotice("pod-1")
    assert not notice.is_there
    with pytest.raises(DrainImpossible, match="BATCHKIT_RUN_DIR"):
        notice.put_up(seconds=60)


@pytest.mark.parametrize("way", ["open to all", "a link"])
def test_a_folder_that_others_can_write_to_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str):
    monkeypatch.delenv("BATCHKIT_RUN_DIR")
    monkeypatch.setattr("batchkit.draining.tempfile.gettempdir", lambda: str(tmp_path))
    notice = DrainNotice("pod-1")
    notice.put_up(seconds=60)
    assert notice.look()
    folder = notice.path.parent
    if way == "a link":
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.chmod(0o777)
    assert not notice.look()
    with pytest.raises(DrainImpossible, match="not this user's alone"):
        notice.put_up(seconds=60)


def test_what_was_laid_in_the_way_of_a_notice_is_neither_followed_nor_written_to(tmp_path: Path):
    notice = DrainNotice("pod-1")
    precious = tmp_path / "precious"
    precious.write_text("kept")
    notice.path.parent.mkdir()
    notice.path.with_suffix(f".{os.getpid()}.new").symlink_to(precious)
    notice.put_up(seconds=60)
    assert "kept" == precious.read_text()
    assert notice.look()


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
