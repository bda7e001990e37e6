"""Values written as JSON come back the same, or are refused with their place."""

from __future__ import annotations

import datetime as dt
import enum
import json
import math
from decimal import Decimal
from typing import cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchkit.errors import NotSerializable
from batchkit.values import dumps, loads


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.dates()
    | st.times()
    | st.datetimes(timezones=st.none() | st.just(dt.timezone.utc) | st.just(dt.timezone(dt.timedelta(hours=-3))))
    | st.timedeltas()
    | st.sampled_from([Colour.RED, Level.LOW])
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.just("$uuid"), inner),
    max_leaves=8,
)


@given(_VALUES)
def test_what_is_written_is_read_back_equal_and_of_the_same_type(value: object):
    text = dumps(value, where="value")
    back = loads(text)

    assert value == back
    assert type(value) is type(back)
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


def test_not_a_number_and_infinity_are_kept_as_json():
    nan, infinity = cast("list[float]", loads(dumps([math.nan, -math.inf], where="value")))
    assert math.isnan(nan)
    assert infinity == -math.inf


def test_a_dict_that_looks_like_a_tag_comes_back_as_the_dict_it_was():
    for value in ({"$uuid": "no"}, {"$dict": {"$tuple": [1]}}, {"$datetime": None, "x": 1}):
        assert value == loads(dumps(value, where="value"))


def test_text_in_the_database_is_plain_ascii_without_nul():
    assert dumps("\x00é\ud800", where="value").isascii()
    assert "\x00" not in dumps("\x00", where="value")


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (object(), "the param a"),
        ({"deep": [1, {2}]}, "the param a['deep'][1]"),
        ({"deep": {1: 2}}, "the key 1 of the param a['deep']"),
        ([b"x", object()], "the param a[1]"),
    ],
)
def test_what_would_not_come_back_is_refused_with_its_place(value: object, place: str):
    with pytest.raises(NotSerializable) as refused:
        dumps(value, where="the param a")
    assert str(refused.value).startswith(f"{place} is a ")


def test_subclasses_are_refused_since_they_would_come_back_as_their_base():
    class Text(str):
        __slots__ = ()

    with pytest.raises(NotSerializable):
        dumps(Text("x"), where="value")


def test_an_enum_member_that_is_gone_is_named_and_nothing_is_imported():
    with pytest.raises(NotSerializable, match=r"tests\.gone\.Colour\.BLUE"):
        loads('{"$enum":["tests.gone","Colour","BLUE"]}')
    with pytest.raises(NotSerializable, match=r"os\.system"):
        loads('{"$enum":["os","system","x"]}')


def test_known_values_have_a_stable_text():
    # What is in users' databases must be readable by every later version.
    moment = dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.timezone.utc)
    identifier = UUID("12345678123456781234567812345678")
    assert '{"$datetime":["2026-01-02T03:04:05.000006+00:00",0]}' == dumps(moment, where="v")
    assert '{"$uuid":"12345678-1234-5678-1234-567812345678"}' == dumps(identifier, where="v")
    assert '{"$decimal":"1.10"}' == dumps(Decimal("1.10"), where="v")
    assert '{"$bytes":"AP8="}' == dumps(b"\x00\xff", where="v")
    assert '{"$tuple":[1,"a"]}' == dumps((1, "a"), where="v")
    assert '{"$enum":["tests.unit.test_values","Colour","RED"]}' == dumps(Colour.RED, where="v")
    assert '{"$timedelta":[1,2,3]}' == dumps(dt.timedelta(1, 2, 3), where="v")
