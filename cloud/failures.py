"""What may go wrong in the cloud, by what is to be done about it.

Their messages never hold a secret: `runpod_api` and `pod_link` see to that.
"""

from __future__ import annotations

from errors import UserError


class CloudError(Exception):
    """Something in the cloud did not work."""


class Transient(CloudError):
    """It may work later: no reply, a rate limit, an error of the server, a reply that makes no
    sense. What was asked for may have happened all the same."""


class NoCapacity(CloudError):
    """There is no such GPU in that place now; nothing was created."""


class Refused(UserError):
    """It will not work later either: the key or what was asked for is wrong."""


class LimitReached(CloudError):
    """The cost cap or the wall limit is reached."""


class Interrupted(CloudError):
    """A signal asked to stop."""
