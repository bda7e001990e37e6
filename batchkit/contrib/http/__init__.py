"""
Who is busy, and whether a worker is well, over HTTP and as JSON: for KEDA's metrics-api, probes and dashboards.

`BusyEndpoint` serves it from inside a worker, `batchkit serve-busy` from a process of its own, and `busy_app` is a WSGI
application for your own web app.
"""

from __future__ import annotations

from batchkit.contrib.http.application import BusyApp, busy_app
from batchkit.contrib.http.endpoint import BusyEndpoint
from batchkit.contrib.http.server import BusyServer

__all__ = ["BusyApp", "BusyEndpoint", "BusyServer", "busy_app"]
