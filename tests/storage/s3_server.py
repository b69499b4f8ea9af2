"""S3 on loopback: moto's server in a thread, with an empty bucket."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def bucket() -> Iterator[tuple[str, dict[str, Any]]]:
    """The address of an empty bucket, and the options that reach it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        name = f"bucket-{uuid.uuid4().hex}"
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
        client.create_bucket(Bucket=name)
        client.close()
        options = {"key": "testing", "secret": "testing", "endpoint_url": endpoint, "skip_instance_cache": True}
        yield f"s3://{name}/mirror", options
    finally:
        server.stop()
