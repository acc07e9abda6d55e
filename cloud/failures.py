"""Errors of the cloud, by how to handle them.

Messages contain no secrets, because `runpod_api` and `pod_link` redact them.
"""

from __future__ import annotations

from errors import UserError


class CloudError(Exception):
    """Something in the cloud did not work."""


class Transient(CloudError):
    """A retry may work: no reply, a rate limit, a server error, a malformed reply. The request may
    have been carried out anyway."""


class NoCapacity(CloudError):
    """There is no such GPU in that place now. Nothing was created."""


class NoSuchPod(CloudError):
    """RunPod says that there is no such pod."""


class LimitReached(CloudError):
    """The cost cap or the time limit is reached."""


class Interrupted(CloudError):
    """A signal asked to stop."""


class Refused(UserError):
    """A retry would not help: the request is not valid or not allowed."""


class Unclear(Refused):
    """An unknown error: a retry is not worth its cost, but the request may have been carried out.
    GraphQL replies with an error if a part of the reply fails after the request has succeeded."""


class KeyRefused(Refused):
    """RunPod does not accept the API key. Nothing was done."""


class AnotherRun(UserError):
    """The results to download are not from the run of that name on this machine."""
