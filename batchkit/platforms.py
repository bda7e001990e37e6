"""How platforms stop a worker: as data, for the grace, the doctor and the page of platforms."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class Hears(str, enum.Enum):
    """Which processes of a worker get the signal to stop."""

    MAIN = "the main process"
    ALL = "every process"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Platform:
    """
    What a platform does to a worker that it stops, where nothing else was set.

    Seconds are those between the signal and the SIGKILL: `grace` is the platform's own, None where its documents
    do not agree, and `longest` the most that can be set, None where no document names an end.
    """

    name: str
    signal: str
    hears: Hears
    grace: float | None
    longest: float | None
    #: where the grace is set; None where it cannot be
    setting: str | None
    #: what keeps a busy worker from being chosen; None where nothing does
    protection: str | None
    #: a variable of the environment that only this platform sets
    sign: str | None
    #: the document that says so
    source: str

    @property
    def can_give(self) -> str:
        """Say how the grace can be had longer."""
        if self.setting is None:
            return "it cannot be set"
        return self.setting if self.longest is None else f"{self.setting}, up to {self.longest:g} s"


_MINUTE = 60.0

_ALL = (
    Platform(
        name="azure",
        signal="SIGTERM",
        hears=Hears.MAIN,
        grace=30,
        longest=None,
        setting="terminationGracePeriodSeconds of the template",
        protection=None,
        sign="CONTAINER_APP_NAME",
        source="https://learn.microsoft.com/azure/container-apps/application-lifecycle-management",
    ),
    Platform(
        name="cloudrun",
        signal="SIGTERM",
        hears=Hears.MAIN,
        grace=10,
        longest=10,
        setting=None,
        protection=None,
        sign="K_SERVICE",
        source="https://cloud.google.com/blog/topics/developers-practitioners/graceful-shutdowns-cloud-run-deep-dive",
    ),
    Platform(
        name="digitalocean",
        signal="SIGTERM",
        hears=Hears.MAIN,
        grace=120,
        longest=600,
        setting="termination.grace_period_seconds of the app spec",
        protection=None,
        sign=None,
        source="https://docs.digitalocean.com/products/app-platform/how-to/configure-termination",
    ),
    Platform(
        name="docker",
        signal="SIGTERM",
        hears=Hears.MAIN,
        grace=10,
        longest=None,
        setting="stop_grace_period in Compose, `docker stop -t`",
        protection=None,
        sign=None,
        source="https://docs.docker.com/reference/cli/docker/container/stop/",
    ),
    Platform(
        name="ecs",
        signal="SIGTERM",
        hears=Hears.MAIN,
        grace=30,
        longest=120,
        setting="stopTimeout of the container",
        protection="task scale-in protection",
        sign="ECS_CONTAINER_METADATA_URI_V4",
        source="https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task_definition_parameters.html",
    ),
    Platform(
        name="fly",
        signal="SIGINT",
        hears=Hears.MAIN,
        grace=5,
        # On a shared CPU; on a dedicated one it is 24 hours.
        longest=5 * _MINUTE,
        setting="kill_timeout in fly.toml",
        protection=None,
        sign="FLY_MACHINE_ID",
        source="https://fly.io/blog/graceful-vm-exits-some-dials/",
    ),
    Platform(
        name="heroku",
        signal="SIGTERM",
        hears=Hears.ALL,
        grace=30,
        longest=30,
        setting=None,
        protection=None,
        sign="DYNO",
        source="https://devcenter.heroku.com/articles/dyno-shutdown-behavior",
    ),
    Platform(
        name="kubernetes",
        signal="SIGTERM",
        hears=Hears.MAIN,
        grace=30,
        longest=None,
        setting="terminationGracePeriodSeconds of the pod",
        protection="the annotation controller.kubernetes.io/pod-deletion-cost",
        sign="KUBERNETES_SERVICE_HOST",
        source="https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/",
    ),
    Platform(
        name="nomad",
        signal="SIGINT; SIGTERM with the Docker driver",
        hears=Hears.MAIN,
        grace=5,
        longest=None,
        setting="kill_timeout of the task, within the client's max_kill_timeout",
        protection=None,
        sign="NOMAD_ALLOC_ID",
        source="https://developer.hashicorp.com/nomad/docs/job-declare/exit-signals",
    ),
    Platform(
        name="railway",
        signal="SIGTERM",
        hears=Hears.MAIN,
        # Its documents say 0, its staff 3.
        grace=None,
        longest=None,
        setting="RAILWAY_DEPLOYMENT_DRAINING_SECONDS",
        protection=None,
        sign="RAILWAY_REPLICA_ID",
        source="https://docs.railway.com/guides/deployment-teardown",
    ),
    Platform(
        name="render",
        signal="SIGTERM",
        hears=Hears.MAIN,
        grace=30,
        longest=300,
        setting="maxShutdownDelaySeconds",
        protection=None,
        sign="RENDER_SERVICE_ID",
        source="https://render.com/docs/deploys",
    ),
    Platform(
        name="systemd",
        signal="SIGTERM",
        hears=Hears.ALL,
        grace=90,
        longest=None,
        setting="TimeoutStopSec of the unit",
        protection=None,
        # Every unit has it, also one that holds a container of another platform: so it is asked last.
        sign="INVOCATION_ID",
        source="https://www.freedesktop.org/software/systemd/man/latest/systemd.kill.html",
    ),
)

#: The platforms by name.
PLATFORMS: Mapping[str, Platform] = {platform.name: platform for platform in _ALL}

#: Those whose signs the others' machines have as well.
_UNDERNEATH = ("kubernetes", "systemd")


def platform_of(environment: Mapping[str, str]) -> Platform | None:
    """Tell which platform a process with these variables runs on; None where nothing gives it away."""
    first = [platform for platform in _ALL if platform.name not in _UNDERNEATH]
    for platform in [*first, *(PLATFORMS[name] for name in _UNDERNEATH)]:
        if platform.sign is not None and platform.sign in environment:
            return platform
    return None
