"""What RunPod's error messages mean. They are prose, and RunPod documents none of them."""

from __future__ import annotations

import re

from cloud.failures import CloudError, NoCapacity, NoSuchPod, Refused, Transient, Unclear

NO_SUCH_POD = r"pod.{0,40}(not found|does not exist)|not found to terminate"

NO_CAPACITY = (
    r"no longer any instances|no instances|not enough (free )?gpus|resources to deploy|"
    r"no.{0,20}available|not available|out of stock|capacity|does not have the resources|"
    r"unavailable in|\bbid\b"
)
"""Tested before MAY_PASS: some end in "Please try again later". A spot bid that has become too low
is no capacity at that price."""

MAY_PASS = (
    r"rate limit|too many requests|internal server|time.?out|timed out|something went wrong|"
    r"try again later|temporar|service unavailable|bad gateway"
)

DENIED = (
    r"unauthori[sz]ed|unauthenticated|not authenticated|api key|forbidden|permission|not allowed"
)


INVALID = r"syntax error|cannot query field|unknown (argument|type)|\bfield \S+ |variable|expected "
"""GraphQL's own errors, which come before a request is carried out."""


def failure(message: str) -> CloudError | Refused:
    """The failure that a message of the server stands for.

    Args:
        message: Without secrets, in one line.
    """
    said = message.lower()
    if re.search(NO_SUCH_POD, said):
        return NoSuchPod(message)
    if re.search(NO_CAPACITY, said):
        return NoCapacity(message)
    if re.search(MAY_PASS, said):
        return Transient(message)
    if re.search(DENIED, said):
        return Refused(f"RunPod does not allow this: {message}")
    kind = Refused if re.match(INVALID, said) else Unclear
    return kind(f"RunPod rejects the request: {message}")
