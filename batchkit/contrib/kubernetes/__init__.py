"""Telling Kubernetes which pods of a Deployment to delete last, and which to leave where they are."""

from __future__ import annotations

from batchkit.contrib.kubernetes.deletion_cost import PodDeletionCost

__all__ = ["PodDeletionCost"]
