"""Results on a network volume, read without a pod: RunPod's S3-compatible API, through boto3."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from cloud.failures import CloudError, Transient
from cloud.redaction import S3_KEYS
from cloud.timekeeping import Bounded
from errors import UserError

ADDRESS = "https://s3api-{region}.runpod.io"
"""Of the volumes of a data center; the environment variable RUNPOD_S3_ADDRESS overrides it."""

REPLY_SECONDS = 60.0


class VolumeFiles:
    """The results of a deployment on a volume.

    Args:
        region: Data center of the volume.
        volume: ID of the volume.
        folder: The run's folder on it.
        results: Name of the results directory in its `out/`.
        secrets: RUNPOD_S3_ACCESS_KEY and RUNPOD_S3_SECRET_KEY.
        bounded: Runs a call within a time limit.

    Raises:
        UserError: The keys are missing, or boto3 is not installed.
    """

    def __init__(
        self,
        region: str,
        volume: str,
        folder: str,
        results: str,
        secrets: Mapping[str, str],
        bounded: Bounded,
    ):
        missing = [name for name in S3_KEYS if not secrets.get(name)]
        if missing:
            raise UserError(f"set {' and '.join(missing)} to read a volume without a pod.")
        try:
            import boto3
            from botocore.config import Config
        except ImportError as error:
            raise UserError(f"boto3 is not installed ({error}); pip install boto3") from None
        address = os.environ.get("RUNPOD_S3_ADDRESS", ADDRESS).format(region=region.lower())
        self._client = boto3.session.Session().client(
            "s3",
            endpoint_url=address,
            region_name=region,
            aws_access_key_id=secrets[S3_KEYS[0]],
            aws_secret_access_key=secrets[S3_KEYS[1]],
            config=Config(
                connect_timeout=20,
                read_timeout=30,
                retries={"max_attempts": 2},
                s3={"addressing_style": "path"},
            ),
        )
        self._volume, self._folder, self._results = volume, folder, results
        self._bounded = bounded

    def done(self) -> dict[str, Any]:
        """How the job ended: its done marker."""
        return self._json("done.json")

    def manifest(self) -> dict[str, Any]:
        """Size and SHA-256 of every file of the results."""
        return self._json("manifest.json")

    def read(self, path: str, offset: int, length: int) -> bytes:
        """A part of a file of the results."""
        return self._get(f"out/{self._results}/{path}", f"bytes={offset}-{offset + length - 1}")

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads(self._get(name))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Transient(f"{name} of the volume is not a JSON object")
        return found

    def _get(self, name: str, part: str | None = None) -> bytes:
        asked = {"Bucket": self._volume, "Key": f"{self._folder}/{name}"}
        if part:
            asked["Range"] = part
        try:
            return self._bounded(
                lambda: self._client.get_object(**asked)["Body"].read(),
                REPLY_SECONDS,
                lambda: False,
            )
        except CloudError:
            raise
        except Exception as error:  # of many types; their messages may hold signed addresses
            raise Transient(f"the volume does not answer ({type(error).__name__})") from None
