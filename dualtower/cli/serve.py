"""Commands on a searchable catalog: serve it, sort it, look for what does not belong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

__all__ = ["Serve"]


@dataclass(frozen=True)
class Serve:
    """Serve a catalog: an HTTP API, and a page to search it with."""

    catalog: Positional[str]
    """Folder of the catalog, or milvus://host:port/name."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is this machine only."""
    port: int = 8000
    """Port to listen on."""
    token_file: Path | None = None
    """File with the token that writers must send; without it nobody may write."""
    model: str | None = None
    """Where the model lies now, if it has moved since the catalog was made."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps ...; auto is an accelerator where there is one."""
    queue: int = 256
    """Requests that may wait; further ones are turned away."""
    rerank: int | None = None
    """Put the best N rows of each request in words in order again with the re-ranker of the model, at most 100."""

    def run(self) -> None:
        from dualtower.serving.server import ServerConfig, serve

        serve(
            ServerConfig(
                catalog=self.catalog,
                host=self.host,
                port=self.port,
                token_file=self.token_file,
                model=self.model,
                device=self.device,
                queue=self.queue,
                rerank=self.rerank,
            )
        )
