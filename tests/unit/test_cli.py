"""The command line, called in this process; what signals do to it is in tests/acceptance."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from batchkit import BatchKit, Run
from batchkit.cli import main
from batchkit.cli.arguments import read_cursor

APP = """\
from __future__ import annotations

import datetime as dt
import enum
import os
from decimal import Decimal
from typing import TYPE_CHECKING, Literal, Optional
from uuid import UUID

from batchkit import BatchKit, Chunk, Finish, batched, span

if TYPE_CHECKING:
    from somewhere import Unknown

kit = BatchKit("sqlite:///app.db")
no_kit = 42


class Colour(enum.Enum):
    RED = "r"
    BLUE = 2


def numbers(n: int, fails: bool = False):
    return span(0, n)


def total(finish: Finish, n: int, fails: bool) -> dict:
    return {"sum": finish.carries[0]["sum"]}


@batched(numbers, chunk_size=10, finish=total)
def add(chunk: Chunk[int], n: int, fails: bool = False) -> None:
    print("the job prints")
    if fails and chunk[0] >= 20:
        raise ValueError("no more than 20 [bold]today[/bold]")
    chunk.carry["sum"] = chunk.carry.get("sum", 0) + sum(chunk)


def typed(
    s: str = "", i: int = 0, f: float = 0.0, b: bool = False, d: Decimal = Decimal(0), u: UUID = UUID(int=0),
    date: dt.date = dt.date(2000, 1, 1), at: dt.datetime = dt.datetime(2000, 1, 1), old: Optional[int] = None,
    new: str | None = None, which: Literal["a", 7] = "a", colour: Colour = Colour.RED, ids: list[int] = [],
    plain="", unknown: Unknown = "",
):
    return span(0, 1)


@batched(typed)
def convert(
    chunk, s="", i=0, f=0.0, b=False, d=Decimal(0), u=UUID(int=0), date=dt.date(2000, 1, 1),
    at=dt.datetime(2000, 1, 1), old=None, new=None, which="a", colour=Colour.RED, ids=[], plain="", unknown="",
):
    pass


def few(n: int):
    return span(0, n)


@batched(numbers, chunk_size=10, max_failures=100)
def picky(chunk: Chunk[int], n: int, fails: bool = False) -> None:
    for item in chunk:
        if fails and item % 10 == 3 and (item == 3 or not os.path.exists("mended")):
            chunk.fail(item, f"item {item}\\nis [bold]bad[/bold]")


@batched(few, delivery="at-most-once")
def charge(chunk: Chunk[int], n: int) -> None:
    if chunk[0] == 3 and not os.path.exists("charged"):
        open("charged", "w").close()
        raise KeyboardInterrupt


@batched(few, name="shop.orders.clean")
def first(chunk: Chunk[int], n: int) -> None:
    pass


@batched(few, name="shop.users.clean")
def second(chunk: Chunk[int], n: int) -> None:
    pass
"""

RUN_SHAPE = [
    "id",
    "job",
    "state",
    "requested",
    "params",
    "queue",
    "delivery",
    "progress",
    "result",
    "error",
    "waiting_reason",
    "retries",
    "retry_reason",
    "rerun_of",
    "failures_of",
    "limit",
    "max_workers",
    "after",
    "is_dry_run",
    "created_at",
    "started_at",
    "finished_at",
]
PROGRESS_SHAPE = [
    "done",
    "failed",
    "in_doubt",
    "total",
    "total_is_estimate",
    "percent",
    "rate",
    "eta_seconds",
    "elapsed_seconds",
    "workers",
    "interruptions",
    "chunk_size",
]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Batchkit = Callable[..., Result]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # One file for all tests: jobs of the same names from another file would be other jobs.
    folder = tmp_path_factory.mktemp("cli")
    (folder / "cliapp.py").write_text(APP)
    (folder / "two_kits.py").write_text(
        "from batchkit import BatchKit\na = BatchKit('sqlite:///a.db')\nb = BatchKit('sqlite:///b.db')\n"
    )
    (folder / "no_kits.py").write_text("")
    (folder / "wants_more.py").write_text("import not_installed_anywhere\n")
    (folder / "fails.py").write_text("1 / 0\n")
    return folder


@pytest.fixture
def batchkit(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Batchkit]:
    """Call the command line in a folder with an app whose database has its tables."""
    for name in [name for name in os.environ if name.startswith("BATCHKIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(home)

    def call(*arguments: str, app: str | None = "cliapp:kit") -> Result:
        # A call is a new process: it imports the app anew.
        sys.modules.pop("cliapp", None)
        monkeypatch.setattr(sys, "argv", ["batchkit", *(["-A", app] if app else []), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Result(int(ended.value.code or 0), printed.out, printed.err)

    assert 0 == call("db", "upgrade").code
    yield call
    for database in home.glob("*.db*"):
        database.unlink()


def started(batchkit: Batchkit, *arguments: str) -> str:
    """Start a run and give its id."""
    return batchkit("start", *arguments).out.strip()


# Finding the app


def one_line_of(result: Result) -> str:
    assert 2 == result.code
    assert 1 == len(result.err.splitlines()), result.err
    return result.err


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ("nowhere:kit", "there is no module 'nowhere'"),
        ("cliapp.inner:kit", "there is no module 'cliapp.inner'"),
        ("cliapp.py:kit", "without .py"),
        (
            "wants_more:kit",
            "importing wants_more failed: ModuleNotFoundError: No module named 'not_installed_anywhere'",
        ),
        ("fails:kit", "importing fails failed: ZeroDivisionError: division by zero"),
        ("cliapp:app", "cliapp has no 'app'; name one of the kits there: cliapp:kit"),
        ("cliapp:no_kit", "'no_kit' is no BatchKit but a int; name one of the kits there: cliapp:kit"),
        ("two_kits", "name one of the kits there: two_kits:a, two_kits:b"),
        ("no_kits", "there is no BatchKit in no_kits"),
    ],
)
def test_an_app_that_is_not_there_is_told_on_one_line(batchkit: Batchkit, app: str, said: str):
    assert said in one_line_of(batchkit("runs", app=app))


def test_a_module_alone_stands_for_its_only_kit(batchkit: Batchkit):
    assert 0 == batchkit("runs", app="cliapp").code


def test_the_app_may_be_named_behind_the_command_or_in_the_environment(
    batchkit: Batchkit, monkeypatch: pytest.MonkeyPatch
):
    id_ = started(batchkit, "cliapp.add", "n=1")

    behind = batchkit("runs", "--json", "-A", "cliapp:kit", app=None)
    monkeypatch.setenv("BATCHKIT_APP", "cliapp:kit")
    named = batchkit("runs", "--json", app=None)

    assert [id_] == [run["id"] for run in behind.json] == [run["id"] for run in named.json]


def test_without_an_app_the_embedded_database_is_read(batchkit: Batchkit):
    result = batchkit("runs", "--json", app=None)

    assert (0, []) == (result.code, result.json)


@pytest.mark.parametrize("command", [["run", "add"], ["start", "add"], ["work"], ["jobs"]])
def test_commands_that_need_jobs_say_so_without_an_app(batchkit: Batchkit, command: list[str]):
    assert "-A module:kit, or set BATCHKIT_APP" in one_line_of(batchkit(*command, app=None))


def test_a_traceback_is_shown_on_demand_and_the_code_stays(batchkit: Batchkit):
    result = batchkit("runs", "--traceback", app="fails:kit")

    assert 2 == result.code
    assert "fails.py" in result.err
    assert "Traceback (most recent call last)" in result.err


# The database


def test_tables_that_are_not_there_are_told_on_one_line(batchkit: Batchkit, home: Path):
    (home / "app.db").unlink()

    assert "run `batchkit db upgrade`" in one_line_of(batchkit("runs"))


def test_a_database_that_cannot_be_reached_is_told_on_one_line(batchkit: Batchkit, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BATCHKIT_DATABASE_URL", "postgresql+psycopg://nobody:secret@127.0.0.1:1/nowhere")

    said = one_line_of(batchkit("runs", app=None))

    assert "cannot be used" in said
    assert "secret" not in said


def test_db_current_tells_both_versions(batchkit: Batchkit, home: Path):
    wanted = batchkit("db", "current", "--json").json["wanted"]
    (home / "app.db").unlink()

    assert {"database": "sqlite:///app.db", "current": None, "wanted": wanted} == batchkit(
        "db", "current", "--json"
    ).json


def test_db_sql_prints_the_statements(batchkit: Batchkit):
    assert "CREATE TABLE batchkit_run" in batchkit("db", "sql").out


# Jobs and their params


def test_an_unknown_job_is_told_with_those_that_are_registered(batchkit: Batchkit):
    said = one_line_of(batchkit("run", "subtract"))

    assert "no job named 'subtract'" in said
    assert "cliapp.add" in said


def test_the_last_parts_of_a_name_do_where_one_job_only_ends_so(batchkit: Batchkit):
    assert "several jobs are called 'clean'" in one_line_of(batchkit("start", "clean", "n=1"))
    assert 0 == batchkit("start", "users.clean", "n=1").code


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ([], "needs the param 'n' (int)"),
        (["n=1", "m=2"], "has no param 'm'; it takes (n: int, fails: bool = False)"),
        (["n=many"], "the param 'n' is int: got 'many'"),
        (["n=1", "fails=perhaps"], "the param 'fails' is bool: got 'perhaps' (it is true or false)"),
        (["n=1", "n=2"], "the param 'n' is given twice"),
        (["n"], "'n' is no param; write key=value"),
        (["n:=["], "the param 'n' is given as JSON"),
    ],
)
def test_params_that_do_not_fit_are_told_on_one_line(batchkit: Batchkit, params: list[str], said: str):
    assert said in one_line_of(batchkit("start", "cliapp.add", *params))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("s=a=b:=c", "a=b:=c"),
        ("s=", ""),
        ("i=-7", -7),
        ("f=1e3", 1000.0),
        ("b=yes", True),
        ("b=off", False),
        ("d=1.10", Decimal("1.10")),
        ("u=12345678-1234-5678-1234-567812345678", UUID("12345678-1234-5678-1234-567812345678")),
        ("date=2026-02-28", dt.date(2026, 2, 28)),
        ("at=2026-02-28T12:00:00Z", dt.datetime(2026, 2, 28, 12, tzinfo=dt.timezone.utc)),
        ("old=3", 3),
        ("old=none", None),
        ("new=none", "none"),
        ("new:=null", None),
        ("which=a", "a"),
        ("which=7", 7),
        ("ids:=[1, 2]", [1, 2]),
        ("plain=1", "1"),
        ("unknown=1", "1"),
    ],
)
def test_a_value_is_read_by_the_annotation(batchkit: Batchkit, argument: str, value: object):
    id_ = started(batchkit, "cliapp.convert", argument)

    assert value == run_of(id_).params[argument.partition("=")[0].rstrip(":")]


@pytest.mark.parametrize(("text", "name"), [("BLUE", "BLUE"), ("2", "BLUE"), ("r", "RED")])
def test_an_enum_is_read_by_name_or_by_value(batchkit: Batchkit, text: str, name: str):
    id_ = started(batchkit, "cliapp.convert", f"colour={text}")

    assert name == batchkit("show", id_, "--json").json["params"]["colour"]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("which=b", "(it is one of a, 7)"),
        ("colour=green", "RED, BLUE"),
        ("ids=1", "give it as JSON: ids:=..."),
        ("d=x", "the param 'd' is Decimal: got 'x'"),
        ("old=x", "the param 'old' is Optional[int]: got 'x'"),
    ],
)
def test_a_value_of_another_type_is_told_on_one_line(batchkit: Batchkit, argument: str, said: str):
    assert said in one_line_of(batchkit("start", "cliapp.convert", argument)).replace("int | None", "Optional[int]")


def test_jobs_are_listed_with_their_params(batchkit: Batchkit):
    by_name = {job["name"]: job for job in batchkit("jobs", "--json").json}

    assert [
        {"name": "n", "type": "int", "required": True, "default": None},
        {"name": "fails", "type": "bool", "required": False, "default": False},
    ] == by_name["cliapp.add"]["params"]
    assert "cliapp.add" in batchkit("jobs").out


# Runs


def test_a_run_that_succeeds_ends_with_0_and_tells_its_result(batchkit: Batchkit):
    result = batchkit("run", "add", "n=100")

    assert 0 == result.code
    assert "100 items done" in result.out
    assert "{'sum': 4950}" in result.out


def test_a_job_is_tried_out_by_a_limit_a_cursor_and_a_dry_run(batchkit: Batchkit):
    result = batchkit("run", "add", "n=100", "--limit", "10", "--after", "9", "--dry-run", "--json")

    run = result.json
    assert (0, 10, 9, True) == (result.code, run["limit"], run["after"], run["is_dry_run"])
    assert (10, 10, {"sum": 145}) == (run["progress"]["done"], run["progress"]["total"], run["result"])
    shown = batchkit("show", run["id"]).out
    for part in ("10 items", "yes: every chunk is rolled back"):
        assert part in shown
    assert "it was a dry run, so nothing of that was kept" in batchkit("run", "add", "n=10", "--dry-run").out


def test_all_partitions_are_worked_here_and_many_are_summed_up(batchkit: Batchkit):
    result = batchkit("run", "add", "n=100", "--partitions", "4", "--max-workers", "2", "--json")

    run = result.json
    assert (0, 2, 100) == (result.code, run["max_workers"], run["progress"]["done"])
    shown = batchkit("show", run["id"]).out
    for part in ("most workers", "0 (items)", "3 (items)", "4 (finish)"):
        assert part in shown
    many = batchkit("run", "add", "n=100", "--partitions", "50", "--json").json["id"]
    shown = batchkit("show", many).out
    assert "51: 51 done, 0 worked, 0 waiting" in shown
    assert "0 (items)" not in shown
    assert 51 == len(batchkit("show", many, "--json").json["partitions"])
    assert "leave out limit or partitions" in batchkit("start", "add", "n=9", "--limit", "2", "--partitions", "2").err


def test_the_same_key_gives_the_same_run(batchkit: Batchkit):
    first = batchkit("start", "add", "n=100", "--key", "nightly", "--queue", "bulk")
    again = batchkit("start", "add", "n=100", "--key", "nightly")

    assert (0, "", first.out) == (first.code, first.err, again.out)
    assert "has this key already; it is queued, and none was started" in again.err
    assert "bulk" == batchkit("show", first.out.strip(), "--json").json["queue"]
    worked = batchkit("run", "add", "n=100", "--key", "nightly")
    assert (0, True) == (worked.code, f"run {first.out.strip()} of cliapp.add succeeded: 100 items" in worked.out)
    assert "0 items done here (100 in all)" in batchkit("run", "add", "n=100", "--key", "nightly").out
    assert "so it cannot start one with" in one_line_of(batchkit("start", "add", "n=5", "--key", "nightly"))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--limit=0", "Invalid value for '--limit'"),
        ("--partitions=10001", "partitions is a number of ranges, 1 to 10000"),
        ("--max-workers=0", "Invalid value for '--max-workers'"),
        ("--after=x", "'x' is not a cursor of span()"),
        ("--key=", "key is a text"),
    ],
)
def test_terms_that_do_not_fit_are_told(batchkit: Batchkit, option: str, said: str):
    result = batchkit("start", "add", "n=100", option)
    assert 2 == result.code
    assert said in result.err


@pytest.mark.parametrize(
    ("text", "cursor"),
    [
        ("7", 7),
        ("x", "x"),
        ('"7"', "7"),
        ("[1, 2]", [1, 2]),
        ('{"$date":"2026-11-24"}', dt.date(2026, 11, 24)),
        (None, None),
    ],
)
def test_a_cursor_is_json_or_else_text(text: str | None, cursor: object):
    assert cursor == read_cursor(text)


def test_a_run_that_fails_ends_with_1_and_tells_the_error_and_how_it_goes_on(batchkit: Batchkit):
    result = batchkit("run", "add", "n=100", "fails=true")

    assert 1 == result.code
    assert "ValueError: no more than 20 [bold]today[/bold]" in result.err
    assert "batchkit -A cliapp:kit resume " in result.err
    assert "Traceback" not in result.err


def test_the_json_of_a_run_has_a_fixed_shape_and_stdout_to_itself(batchkit: Batchkit):
    result = batchkit("run", "add", "n=100", "--json")

    run = result.json
    assert "the job prints" in result.err
    assert RUN_SHAPE == list(run)
    assert PROGRESS_SHAPE == list(run["progress"])
    assert ("cliapp.add", "succeeded", {"n": 100, "fails": False}, {"sum": 4950}) == (
        run["job"],
        run["state"],
        run["params"],
        run["result"],
    )
    assert (100, 100, 100.0) == (run["progress"]["done"], run["progress"]["total"], run["progress"]["percent"])
    assert dt.timedelta(0) == dt.datetime.fromisoformat(run["created_at"]).utcoffset()


def test_the_json_of_a_failed_run_holds_the_error_and_show_adds_partitions_and_history(batchkit: Batchkit):
    id_ = batchkit("run", "add", "n=100", "fails=true", "--json").json["id"]

    run = batchkit("show", id_, "--json").json

    assert [*RUN_SHAPE, "partitions", "history"] == list(run)
    assert ["type", "message", "traceback", "partition", "cursor", "item"] == list(run["error"])
    assert ("ValueError", 0, "19") == (run["error"]["type"], run["error"]["partition"], run["error"]["cursor"])
    assert [
        "number",
        "kind",
        "state",
        "cursor",
        "done",
        "failed",
        "in_doubt",
        "fence",
        "worker",
        "lease_expires_at",
        "is_held",
        "until",
    ] == list(run["partitions"][0])
    assert (20, 19) == (run["partitions"][0]["done"], run["partitions"][0]["cursor"])
    assert ["at", "before", "after", "reason", "worker"] == list(run["history"][0])
    assert ["queued", "running", "failed"] == [change["after"] for change in run["history"]]


def test_show_tells_a_person_everything_with_the_traceback(batchkit: Batchkit):
    id_ = batchkit("run", "add", "n=100", "fails=true", "--json").json["id"]

    shown = batchkit("show", id_).out

    for part in (id_, "20/100 (20.0 %)", "n=100 fails=True", "claimed", 'raise ValueError("no more than 20'):
        assert part in shown


def test_a_run_is_found_by_an_end_of_its_id(batchkit: Batchkit):
    id_ = started(batchkit, "cliapp.add", "n=1")

    assert id_ == batchkit("show", id_[-6:].upper(), "--json").json["id"]


def test_a_part_of_an_id_that_is_too_short_or_of_several_or_of_none_is_told_on_one_line(batchkit: Batchkit):
    first, second = (started(batchkit, "cliapp.add", "n=1") for _ in range(2))

    several = one_line_of(batchkit("show", first[:4]))

    assert first in several
    assert second in several
    assert "too short" in one_line_of(batchkit("show", first[-3:]))
    assert "there is no run 'zzzz'" in one_line_of(batchkit("show", "zzzz"))
    assert "there is no run" in one_line_of(batchkit("show", "z" * 26))


def test_runs_are_listed_newest_first_and_filtered(batchkit: Batchkit):
    waiting = started(batchkit, "cliapp.add", "n=1")
    done = batchkit("run", "add", "n=1", "--json").json["id"]
    other = started(batchkit, "users.clean", "n=1")

    def ids(*options: str) -> list[str]:
        return [run["id"] for run in batchkit("runs", "--json", *options).json]

    assert [other, done, waiting] == ids()
    assert [other] == ids("--limit", "1")
    assert [done, waiting] == ids("--job", "add")
    assert [other, waiting] == ids("--state", "queued")
    assert [done] == ids("--state", "succeeded", "--state", "failed")
    assert done in batchkit("runs").out


def test_a_paused_run_is_resumed_and_worked_here(batchkit: Batchkit):
    id_ = started(batchkit, "cliapp.add", "n=30")
    assert "is paused" in batchkit("pause", id_).out

    result = batchkit("resume", id_, "--json")

    assert (0, "succeeded", 30) == (result.code, result.json["state"], result.json["progress"]["done"])


def test_a_queued_run_is_worked_by_resume_as_it_is(batchkit: Batchkit):
    id_ = started(batchkit, "cliapp.add", "n=30")

    assert 0 == batchkit("resume", id_).code
    assert "succeeded" == run_of(id_).state.value


def test_resume_leaves_the_work_to_others_when_detached(batchkit: Batchkit):
    id_ = started(batchkit, "cliapp.add", "n=30")
    batchkit("pause", id_)

    result = batchkit("resume", id_, "--detach")

    assert (0, f"run {id_} is queued\n") == (result.code, result.out)
    assert 0 == run_of(id_).progress.done


def test_a_run_that_has_ended_is_not_resumed(batchkit: Batchkit):
    id_ = started(batchkit, "cliapp.add", "n=30")
    assert "cancelled" == batchkit("cancel", id_, "--json").json["state"]

    assert f"run {id_} is cancelled" in one_line_of(batchkit("resume", id_))


def test_watch_follows_the_newest_run_and_tells_how_it_ended(batchkit: Batchkit):
    batchkit("run", "add", "n=30")
    succeeded = batchkit("watch", "--json")
    batchkit("run", "add", "n=30", "fails=1")
    failed = batchkit("watch")

    assert (0, "succeeded") == (succeeded.code, succeeded.json["state"])
    assert 1 == failed.code
    assert "failed: 20 items done" in failed.out


def test_recover_tells_which_runs_wait(batchkit: Batchkit):
    id_ = started(batchkit, "cliapp.add", "n=1")

    assert {"settled": [], "woken": [id_]} == batchkit("recover", "--json").json


# The doctor

FINDING_SHAPE = ["check", "level", "subject", "problem", "danger", "mend"]


def test_the_doctor_says_that_nothing_is_wrong(batchkit: Batchkit, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BATCHKIT_GRACE_SECONDS", "30")

    assert (0, "nothing found\n") == (batchkit("doctor").code, batchkit("doctor").out)
    assert (0, []) == (batchkit("doctor", "--json").code, batchkit("doctor", "--json").json)


def test_what_is_good_to_know_is_no_failure(batchkit: Batchkit):
    result = batchkit("doctor", "--json")

    assert 0 == result.code
    assert [FINDING_SHAPE] == [list(finding) for finding in result.json]
    assert [("grace-unknown", "info")] == [(finding["check"], finding["level"]) for finding in result.json]


def test_the_doctor_fails_where_something_must_be_mended(batchkit: Batchkit, home: Path):
    (home / "app.db").unlink()

    told = batchkit("doctor")

    assert 1 == told.code == batchkit("doctor", "--json").code
    assert told.out.startswith("FAIL sqlite:///app.db: The tables of batchkit")
    assert "Run `batchkit db upgrade`" in told.out
    assert told.out.endswith("\n1 fail, 1 info\n")


def test_the_doctor_does_without_an_app_and_without_a_database(batchkit: Batchkit, monkeypatch: pytest.MonkeyPatch):
    assert 0 == batchkit("doctor", app=None).code
    monkeypatch.setenv("BATCHKIT_DATABASE_URL", "postgresql+psycopg://nobody:secret@127.0.0.1:1/nowhere")

    away = batchkit("doctor", "--json", app=None)

    assert (1, "database-unreachable") == (away.code, away.json[0]["check"])
    assert "secret" not in away.out


def test_the_doctor_wants_an_app_that_is_there(batchkit: Batchkit):
    assert "there is no module 'nowhere'" in one_line_of(batchkit("doctor", app="nowhere:kit"))


def test_wrong_options_are_usage_errors(batchkit: Batchkit):
    assert 2 == batchkit("runs", "--nonsense").code
    assert 2 == batchkit("nonsense").code
    assert 0 == batchkit("--help").code


def run_of(id_: str) -> Run:
    kit = BatchKit("sqlite:///app.db")
    try:
        return kit.run(id_)
    finally:
        kit.close()


def failed(batchkit: Batchkit) -> str:
    """Work a run with ten items that fail, and give its id."""
    result = batchkit("run", "picky", "n=100", "fails=yes", "--json")
    facts = json.loads(result.out)
    assert (90, 10) == (facts["progress"]["done"], facts["progress"]["failed"])
    return str(facts["id"])


def test_failures_are_listed_for_people(batchkit: Batchkit):
    run_id = failed(batchkit)
    listed = batchkit("failures", run_id, "--limit", "3")
    assert 0 == listed.code
    assert 4 == len(listed.out.splitlines())
    assert "RuntimeError: item 3 " in listed.out
    assert "--limit N, --csv or --json" in listed.err
    assert "10 (batchkit failures" in batchkit("show", run_id).out


def test_failures_are_listed_for_programs(batchkit: Batchkit):
    run_id = failed(batchkit)
    facts = json.loads(batchkit("failures", run_id, "--json").out)
    assert [str(item) for item in range(3, 100, 10)] == [each["item"] for each in facts]
    assert ("RuntimeError", "item 3\nis [bold]bad[/bold]", "3", 1, None) == (
        facts[0]["error_type"],
        facts[0]["message"],
        facts[0]["cursor"],
        facts[0]["attempts"],
        facts[0]["resolved_at"],
    )
    rows = list(csv.DictReader(io.StringIO(batchkit("failures", run_id, "--csv").out)))
    assert [each["message"] for each in facts] == [each["message"] for each in rows]


def test_failures_that_are_tried_again_are_no_longer_listed(batchkit: Batchkit):
    run_id = failed(batchkit)
    mended = Path("mended")
    mended.touch()
    again = batchkit("retry-failures", run_id).out.strip()
    assert run_id == json.loads(batchkit("show", again, "--json").out)["failures_of"]
    assert 0 == batchkit("resume", again).code
    mended.unlink()
    assert ["3"] == [each["item"] for each in json.loads(batchkit("failures", run_id, "--json").out)]
    assert 10 == len(json.loads(batchkit("failures", run_id, "--json", "--all").out))


def test_what_is_in_doubt_is_shown_and_tried_again_on_demand_only(batchkit: Batchkit):
    assert 75 == batchkit("run", "charge", "n=5").code
    (facts,) = json.loads(batchkit("runs", "--job", "cliapp.charge", "--json").out)
    run_id = facts["id"]
    assert 0 == batchkit("resume", run_id).code
    facts = json.loads(batchkit("show", run_id, "--json").out)
    assert ("at-most-once", 4, 0, 1) == (
        facts["delivery"],
        *(facts["progress"][each] for each in ("done", "failed", "in_doubt")),
    )
    assert 1 == facts["partitions"][0]["in_doubt"]
    shown = batchkit("show", run_id).out
    assert "1 (batchkit failures" in shown
    assert "at-most-once" in shown
    assert [(True, "3")] == [
        (each["in_doubt"], each["item"]) for each in json.loads(batchkit("failures", run_id, "--json").out)
    ]
    assert ["in", "doubt"] == batchkit("failures", run_id).out.splitlines()[0].split()[3:5]
    refused = batchkit("retry-failures", run_id)
    assert (2, True) == (refused.code, f"batchkit retry-failures {run_id} --in-doubt" in refused.err)
    again = batchkit("retry-failures", run_id, "--in-doubt").out.strip()
    assert 0 == batchkit("resume", again).code
    assert [] == json.loads(batchkit("failures", run_id, "--json").out)


def test_a_run_without_failures_says_so(batchkit: Batchkit):
    run_id = json.loads(batchkit("run", "picky", "n=3", "--json").out)["id"]
    listed = batchkit("failures", run_id)
    assert (0, "") == (listed.code, listed.out)
    assert "has no failures that are open" in listed.err
    refused = batchkit("retry-failures", run_id)
    assert 2 == refused.code
    assert "nothing to try again" in refused.err
