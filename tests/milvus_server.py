"""A Milvus server on loopback: Milvus Lite in a process of its own, which may ask for a token and speak TLS."""

from __future__ import annotations

import argparse
import base64
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

PATIENT = [
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
]
"""As Milvus lets its clients ask every ten seconds whether the connection still stands; grpc itself ends it then."""


@contextmanager
def running(folder: Path, *more: str) -> Iterator[int]:
    """Start a server; its port."""
    command = [sys.executable, __file__, str(folder), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


class NeedsToken(grpc.ServerInterceptor):
    """Lets in only who brings the token, as Milvus wants it: in base64."""

    def __init__(self, token: str) -> None:
        self.wanted = base64.b64encode(token.encode()).decode()

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        if dict(details.invocation_metadata).get("authorization") == self.wanted:
            return continuation(details)

        def refuse(_: Any, context: Any) -> Any:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "auth check failure, please check api key is correct")

        return grpc.unary_unary_rpc_method_handler(refuse)


def main() -> None:
    from milvus_lite.adapter.grpc.servicer import MilvusServicer
    from milvus_lite.db import MilvusLite
    from pymilvus.grpc_gen import milvus_pb2_grpc

    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--token")
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--key", type=Path)
    args = parser.parse_args()
    guards = [NeedsToken(args.token)] if args.token else []
    server = grpc.server(ThreadPoolExecutor(8), interceptors=guards, options=PATIENT)
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(MilvusServicer(MilvusLite(args.folder)), server)
    if args.certificate:
        pairs = [(args.key.read_bytes(), args.certificate.read_bytes())]
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pairs))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
