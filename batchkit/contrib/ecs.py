"""Amazon ECS: a task that works what must not be stopped is protected from scale-in and from deployments."""

from __future__ import annotations

import json
import logging
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from http.client import HTTPException

from batchkit.hooks import BusyHook, HookContext, WorkerState

_logger = logging.getLogger("batchkit")

#: Where ECS says, in each container, that its agent listens.
VARIABLE = "ECS_AGENT_URI"
_PATH = "/task-protection/v1/state"
#: A worker waits two seconds for an answer before it claims; one that comes later is of no use to it.
_TIMEOUT_SECONDS = 1.5
#: How long a refusal is taken for one without asking again: workers ask often, and ECS limits the calls of its API.
_REFUSED_SECONDS = 10.0
_MINUTE = 60.0
_LEAST_MINUTES, _MOST_MINUTES = 1, 2880
#: ECS's word for a task that belongs to no service: it is never scaled in, so it needs no protection.
_STANDALONE = "TASK_NOT_VALID"

#: What to do, by the status of the answer.
_ADVICE: Mapping[int, str] = {
    400: "ECS does not take the request, or the task's role lacks ecs:UpdateTaskProtection on the task: allow it",
    403: "the task has no role: set taskRoleArn to one that allows ecs:GetTaskProtection and ecs:UpdateTaskProtection",
    404: "the agent does not know of task protection, or of this task: update the agent, or Fargate's platform",
    500: "ECS has failed; it is asked again",
    504: "the agent got no answer from ECS in time: see that the task's subnet reaches the ECS endpoint",
}


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the agent has said: whether the task is protected now; None where nobody knows."""

    is_protected: bool | None
    #: what is wrong, and what to do about it; empty where nothing is
    problem: str = ""
    #: names the problem: it is told of once
    kind: str = ""


class TaskProtection(BusyHook):
    """
    Protects the ECS task while its worker works what must not be stopped, and asks before each such claim.

    Work is claimed once ECS has said that the task is protected; where it refuses, it is left to other tasks; where
    nobody knows (no permission, no answer), it is claimed all the same and a warning says once what to do. A protection
    ends by itself: it lasts for twice the time to the next checkpoint, and is renewed at half of that.

    Args:
        agent_uri: where the agent of ECS listens; by default what ECS_AGENT_URI says. Without either, this is no ECS
            task, and nothing is done.
        shortest: for how long a protection is asked for at the least; ECS counts whole minutes. A shorter one ends
            sooner after a crash, and is renewed more often: each renewal is a call of ECS's API, which limits them.
    """

    def __init__(self, agent_uri: str | None = None, *, shortest: timedelta | float = 300) -> None:
        seconds = shortest.total_seconds() if isinstance(shortest, timedelta) else float(shortest)
        if not _MINUTE <= seconds <= _MOST_MINUTES * _MINUTE:
            message = f"shortest is from a minute to 48 hours, such as shortest=300: got {shortest!r}"
            raise ValueError(message)
        self._uri = agent_uri or os.environ.get(VARIABLE)
        self._shortest = seconds
        # The agent is a neighbour, which no proxy reaches.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._newest = 0
        #: whether the task may be protected: also after a request whose answer was lost
        self._may_be_on = False
        self._is_on = False
        self._renews_at = 0.0
        self._ends_at = 0.0
        self._refused_until = 0.0
        self._warned: set[str] = set()

    def begin(self, context: HookContext) -> None:  # noqa: ARG002  there is nothing to know of it
        """Say where there is no agent, and take back what a worker before this one may have left in this container."""
        if self._uri is None:
            _logger.warning("%s is not set, so this is no ECS task, and no task is protected", VARIABLE)
            return
        self._may_be_on = True
        self._take_back()

    def protect(self, state: WorkerState) -> bool | None:
        """Protect the task before a claim; True once ECS has said that it is protected."""
        if self._uri is None:
            return None
        self._newest = state.sequence
        now = time.monotonic()
        if self._is_on and now < self._renews_at:
            return True
        if now < self._refused_until:
            return False
        return self._ask_for(state)

    def changed(self, state: WorkerState) -> None:
        """Take the protection back once it is needed no longer."""
        if self._uri is None or state.sequence < self._newest:
            # What was known before a claim was asked for would take back what that relies on.
            return
        self._newest = state.sequence
        if not state.is_protected:
            self._take_back()
        elif time.monotonic() >= max(self._renews_at, self._refused_until):
            self._ask_for(state)

    def end(self) -> None:
        """Take the protection back."""
        if self._uri is not None:
            self._take_back()

    # What is asked of ECS

    def _ask_for(self, state: WorkerState) -> bool | None:
        minutes = self._minutes(state.remaining)
        now = time.monotonic()
        answer = self._put({"ProtectionEnabled": True, "ExpiresInMinutes": minutes})
        if answer.is_protected is True:
            self._may_be_on = self._is_on = True
            self._ends_at = now + minutes * _MINUTE
            self._renews_at = now + minutes * _MINUTE / 2
        elif answer.is_protected is None:
            # It may have been heard all the same.
            self._may_be_on = True
            self._is_on = self._is_on and now < self._ends_at
        else:
            self._is_on = False
            self._refused_until = now + _REFUSED_SECONDS
        return answer.is_protected

    def _take_back(self) -> None:
        if not self._may_be_on:
            return
        self._is_on = False
        self._renews_at = 0.0
        # Where nobody answers it is tried again with each repetition, until the protection has ended by itself.
        self._may_be_on = self._put({"ProtectionEnabled": False}).is_protected is None

    def _minutes(self, remaining: float | None) -> int:
        wanted = max(self._shortest, 2 * (remaining or 0.0))
        return min(max(math.ceil(wanted / _MINUTE), _LEAST_MINUTES), _MOST_MINUTES)

    def _put(self, body: Mapping[str, object]) -> _Answer:
        answer = _read(*self._call(body))
        if not answer.problem:
            self._warned.clear()
        elif answer.kind not in self._warned:
            self._warned.add(answer.kind)
            _logger.warning("ECS task protection: %s", answer.problem)
        return answer

    def _call(self, body: Mapping[str, object]) -> tuple[int, bytes]:
        """Give the status and the body of the agent's answer; 0 and why where there is none."""
        request = urllib.request.Request(  # noqa: S310  the address is ECS's, or the user's own
            f"{str(self._uri).rstrip('/')}{_PATH}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method="PUT",
        )
        try:
            with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _rest_of(error)
        except (OSError, HTTPException, ValueError) as error:
            return 0, str(error).encode()


def _rest_of(error: urllib.error.HTTPError) -> bytes:
    try:
        return error.read()
    except (OSError, HTTPException):
        return b""


def _read(status: int, body: bytes) -> _Answer:
    """
    Read what the agent has said.

    A refusal comes with status 200, too: only what says that the task is protected means that it is.
    """
    if not status:
        return _Answer(None, f"the agent at {VARIABLE} did not answer ({body.decode(errors='replace')})", "silence")
    said = _parsed(body)
    failure = said.get("failure")
    if isinstance(failure, dict):
        reason = str(failure.get("Reason"))
        if reason == _STANDALONE:
            return _Answer(
                None, "this task belongs to no service, so ECS never scales it in, and protects it from nothing", reason
            )
        return _Answer(
            is_protected=False,
            problem=f"ECS refuses ({reason}: {failure.get('Detail')}), so the work is left to other tasks",
            kind=reason,
        )
    protection = said.get("protection")
    enabled = protection.get("ProtectionEnabled") if isinstance(protection, dict) else None
    if status == 200 and isinstance(enabled, bool):  # noqa: PLR2004  HTTP's OK
        return _Answer(enabled)
    error = said.get("error")
    says = f"{error.get('Code')}: {error.get('Message')}" if isinstance(error, dict) else "it cannot be read"
    return _Answer(
        None,
        f"status {status} ({says}); {_ADVICE.get(status, 'nobody knows whether the task is protected')}",
        str(status),
    )


def _parsed(body: bytes) -> dict[str, object]:
    try:
        said = json.loads(body)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
