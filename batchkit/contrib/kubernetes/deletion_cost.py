"""The hook that says, as an annotation of its own pod, what it costs to delete it."""

from __future__ import annotations

import enum
import importlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from batchkit.contrib.kubernetes.api import ACCOUNT, Pod, is_in_cluster
from batchkit.hooks import BusyHook, HookContext, WorkerState

_logger = logging.getLogger("batchkit")

COST = "controller.kubernetes.io/pod-deletion-cost"
#: What keeps the autoscalers of nodes, Cluster Autoscaler and Karpenter, from emptying the pod's node.
_KEEPS_NODE: Mapping[str, str] = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}
_LEAST_INTERVAL_SECONDS = 30.0
#: The codec is what looking a host up imports.
_NEEDED_BY_CALLS = ("urllib3", "encodings.idna")


class Band(enum.IntEnum):
    """How much is lost with the pod; its value is the cost."""

    #: nothing is worked; what a pod without the annotation has
    IDLE = 0
    #: what is worked stops at its next checkpoint within the grace
    INTERRUPTIBLE = 10
    #: what is worked must not be stopped, or nothing is known of it
    PROTECTED = 1000


class PodDeletionCost(BusyHook):
    """
    Has Kubernetes delete idle pods of a Deployment first, then those that may be interrupted, then the protected ones.

    It patches its own pod, and only when the band changes: at once upwards, downwards when nothing was patched for
    *least_interval* seconds. Kubernetes takes the cost as a wish, and looks at it only when it scales a ReplicaSet in:
    checkpoints are what makes a wrong choice harmless. Outside of a cluster it does nothing.

    The pod's name is POD_NAME, else the instance (BATCHKIT_INSTANCE, or the host name); one worker to a pod.

    Args:
        least_interval: in seconds; the API server suffers from pods that are patched all the time.
        keep_node: whether to keep the node's autoscaler from emptying the node too, while the pod is protected.
        account: where what the service account is known by is mounted.

    Raises:
        ImportError: urllib3 is missing.
    """

    def __init__(
        self,
        *,
        least_interval: float = _LEAST_INTERVAL_SECONDS,
        keep_node: bool = False,
        account: Path = ACCOUNT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            # Not by the hook's thread: a child that is forked in the middle inherits the module's lock, and whatever
            # imports it there waits for ever.
            for name in _NEEDED_BY_CALLS:
                importlib.import_module(name)
        except ImportError as error:
            message = "PodDeletionCost needs the package urllib3: pip install 'batchkit-jobs[kubernetes]'"
            raise ImportError(message) from error
        self._least_interval = least_interval
        self._keep_node = keep_node
        self._account = account
        self._clock = clock
        self._instance: str | None = None
        #: the band that the pod shows; None where that is not known
        self._shown: Band | None = None
        self._patched_at: float | None = None

    def begin(self, context: HookContext) -> None:
        """Take note of the pod's name."""
        if is_in_cluster():
            self._instance = context.instance
        else:
            _logger.info("there is no pod to annotate outside of Kubernetes")

    def changed(self, state: WorkerState) -> None:
        """
        Show the band that the worker is in, unless it is too early to lower it; then a repetition does.

        Raises:
            PodNotPatched: the API server did not take it; a repetition tries again.
        """
        band = _band(state)
        if band != self._shown and (self._is_unknown_or_rises(band) or not self._was_patched_lately):
            self._show(band)

    def end(self) -> None:
        """Show that nothing is worked: the pod may outlive its worker."""
        if self._shown is not Band.IDLE:
            self._show(Band.IDLE)

    def _is_unknown_or_rises(self, band: Band) -> bool:
        # After a failure nobody knows what the pod shows. It is tried again by each repetition, which is seldom enough.
        return self._shown is None or band > self._shown

    @property
    def _was_patched_lately(self) -> bool:
        return self._patched_at is not None and self._clock() - self._patched_at < self._least_interval

    def _show(self, band: Band) -> None:
        if self._instance is None:
            return
        self._shown = None
        self._patched_at = self._clock()
        Pod.of_this_process(self._instance, account=self._account).annotate(self._annotations(band))
        self._shown = band

    def _annotations(self, band: Band) -> dict[str, str | None]:
        annotations: dict[str, str | None] = {COST: str(band.value)}
        if self._keep_node:
            is_kept = band is Band.PROTECTED
            annotations.update({name: value if is_kept else None for name, value in _KEEPS_NODE.items()})
        return annotations


def _band(state: WorkerState) -> Band:
    if state.is_protected:
        return Band.PROTECTED
    return Band.INTERRUPTIBLE if state.is_busy else Band.IDLE
