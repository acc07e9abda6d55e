"""Run the dead-man switch or the server of a pod."""

from __future__ import annotations

import os
import sys

from cloud.pod.dead_man import dead_man
from cloud.pod.place import Place
from cloud.pod.server import serve

{"dead_man": dead_man, "serve": serve}[sys.argv[1]](Place(os.environ))
