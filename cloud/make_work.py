"""From a request to the work: what train.py or sweep.py is to do in the pod."""

from __future__ import annotations

from cloud.redaction import Redactor
from cloud.request import Request
from cloud.run_work import run_work
from cloud.sweep_work import sweep_work
from cloud.work import Work


def make_work(request: Request, redact: Redactor) -> Work:
    """The work that a request asks for.

    Args:
        request: What is asked.
        redact: Knows the secrets, which must not be in any file that is sent.

    Raises:
        UserError: The config has errors, or what it needs cannot be sent.
    """
    return sweep_work(request, redact) if request.sweep else run_work(request, redact)
