"""The platforms: known by their signs, and each with its page."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchkit.errors import InvalidGrace
from batchkit.grace import grace_seconds
from batchkit.platforms import PLATFORMS, Platform, platform_of
from docs import platforms

_DOCS = Path(platforms.__file__).parent


@pytest.mark.parametrize("platform", PLATFORMS.values(), ids=sorted(PLATFORMS))
def test_each_platform_has_a_page_that_says_what_to_set(platform: Platform):
    page = (_DOCS / "platforms" / f"{platform.name}.md").read_text()
    for part in ("**Set:**", "**At a deploy:**", "**You see:**"):
        assert part in page, part
    assert f"BATCHKIT_GRACE_SECONDS={platform.name}" in page or f"`{platform.name}`" in page
    if platform.setting is not None:
        assert platform.setting.split()[0].strip("`") in page


def test_the_page_of_platforms_is_what_the_data_generates():
    assert platforms.page() == platforms.PAGE.read_text()


@pytest.mark.parametrize("platform", [each for each in PLATFORMS.values() if each.sign])
def test_a_platform_is_known_by_its_sign(platform: Platform):
    assert platform is platform_of({str(platform.sign): "x"})


def test_what_runs_on_kubernetes_or_systemd_is_known_by_its_own_sign():
    assert PLATFORMS["fly"] is platform_of({"INVOCATION_ID": "x", "FLY_MACHINE_ID": "x"})
    assert PLATFORMS["kubernetes"] is platform_of({"INVOCATION_ID": "x", "KUBERNETES_SERVICE_HOST": "x"})
    assert platform_of({"PATH": "/bin"}) is None


@pytest.mark.parametrize("platform", PLATFORMS.values(), ids=sorted(PLATFORMS))
def test_the_name_of_a_platform_is_a_grace_where_its_own_can_be_counted_on(platform: Platform):
    if platform.grace is not None:
        assert platform.grace == grace_seconds(platform.name)
        return
    with pytest.raises(InvalidGrace, match=str(platform.setting)):
        grace_seconds(platform.name)
