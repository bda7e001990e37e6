"""Patching the pod that this process runs in, as its service account and by plain HTTPS."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from batchkit import BatchkitError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

#: Where Kubernetes mounts what a service account is known by.
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_HOST_VARIABLE = "KUBERNETES_SERVICE_HOST"
#: A hook is left alone when a call takes over 4 seconds.
_CONNECT_SECONDS = 1.0
_ANSWER_SECONDS = 2.0
_LONGEST_TEXT = 300


class PodNotPatched(BatchkitError):
    """Raised when the API server did not take an annotation; it says what to do."""


def is_in_cluster() -> bool:
    """Tell whether this process runs in a pod."""
    return bool(os.environ.get(_HOST_VARIABLE))


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod, and where its API server is."""

    host: str
    port: int
    namespace: str
    name: str
    account: Path = ACCOUNT

    @classmethod
    def of_this_process(cls, name: str, *, account: Path = ACCOUNT) -> Pod:
        """
        Give the pod that this process runs in: POD_NAME, else *name*.

        Raises:
            PodNotPatched: its namespace cannot be told.
        """
        host = os.environ[_HOST_VARIABLE]
        port = int(os.environ.get("KUBERNETES_SERVICE_PORT_HTTPS") or os.environ.get("KUBERNETES_SERVICE_PORT") or 443)
        namespace = os.environ.get("POD_NAMESPACE") or _read(account / "namespace")
        return cls(host=host, port=port, namespace=namespace, name=os.environ.get("POD_NAME") or name, account=account)

    def annotate(self, annotations: Mapping[str, str | None]) -> None:
        """
        Set annotations, and remove those that are None.

        Raises:
            PodNotPatched: the API server refused it, or did not answer in time.
        """
        import urllib3  # noqa: PLC0415  an extra

        # Token and certificate are read each time: both are exchanged while the pod runs.
        token = _read(self.account / "token")
        try:
            trust = ssl.create_default_context(cafile=self.account / "ca.crt")
        except OSError as error:
            raise PodNotPatched(f"the certificate {self.account / 'ca.crt'} cannot be used: {error}") from error
        path = f"/api/v1/namespaces/{quote(self.namespace, safe='')}/pods/{quote(self.name, safe='')}"
        timeout = urllib3.Timeout(connect=_CONNECT_SECONDS, read=_ANSWER_SECONDS)
        with urllib3.HTTPSConnectionPool(
            self.host, self.port, ssl_context=trust, timeout=timeout, retries=False
        ) as pool:
            try:
                response = pool.request(
                    "PATCH",
                    path,
                    body=json.dumps({"metadata": {"annotations": dict(annotations)}}),
                    headers={
                        "Authorization": f"Bearer {token}",
                        # A null removes an annotation; other annotations stay, whoever set them.
                        "Content-Type": "application/merge-patch+json",
                        "Accept": "application/json",
                    },
                )
            except urllib3.exceptions.HTTPError as error:
                raise PodNotPatched(
                    f"the API server {self.host}:{self.port} did not take the annotation of pod {self.name}: {error}"
                ) from error
        if response.status != _OK:
            raise self._refused(response)

    def _refused(self, response: BaseHTTPResponse) -> PodNotPatched:
        mend = _MENDS.get(response.status, "it is tried again").format(namespace=self.namespace, pod=self.name)
        return PodNotPatched(
            f"the API server answered {response.status} to the annotation of pod {self.namespace}/{self.name}; {mend}. "
            f"It says: {_said(response.data)}"
        )


_OK = 200
_MENDS: Mapping[int, str] = {
    401: "its token is not valid: see that the service account is there",
    403: "its service account may not `patch` `pods` in {namespace}: apply docs/hooks/kubernetes/rbac.yaml, "
    "and name the account in the pod's serviceAccountName",
    404: "there is none of that name in {namespace}: give the pod's own as POD_NAME, by the downward API",
}


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise PodNotPatched(
            f"{path} cannot be read ({error.strerror}); the pod needs a service account whose token is mounted: "
            f"automountServiceAccountToken must not be false"
        ) from error


def _said(body: bytes) -> str:
    """Give the message of a Status of Kubernetes, or the beginning of whatever it is."""
    try:
        status = json.loads(body)
    except ValueError:
        status = None
    message = status.get("message") if isinstance(status, dict) else None
    return str(message or body.decode(errors="replace"))[:_LONGEST_TEXT]
