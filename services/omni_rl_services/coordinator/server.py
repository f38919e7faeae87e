"""Runs the coordinator: one process, one worker, uvicorn."""

import logging
import os
import socket

import uvicorn
from fastapi import FastAPI

from omni_rl_services.coordinator.core import Coordinator
from omni_rl_services.coordinator.settings import CoordinatorSettings

logger = logging.getLogger("omni_rl.coordinator")
GRACE_SECONDS = 10
"""How long requests under way may take to end when the process is asked to."""
BACKLOG = 2048


class Server(uvicorn.Server):
    """Ends event streams first when it is asked to stop: they would never end by themselves."""

    def __init__(self, config: uvicorn.Config, coordinator: Coordinator) -> None:
        super().__init__(config)
        self._coordinator = coordinator

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        path = self._coordinator.settings.address_file
        if path is not None and self.started:
            partial = path.with_name(f"{path.name}.{os.getpid()}")
            partial.write_text(self.address())
            partial.replace(path)

    def address(self) -> str:
        """Where it listens, once it does."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._coordinator.events.close()
        await super().shutdown(sockets)


def make_server(app: FastAPI) -> Server:
    """A server of `create_app`'s app, at the address of its settings."""
    coordinator: Coordinator = app.state.coordinator
    settings = coordinator.settings
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        workers=1,
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
        # Uvicorn would log each request; Prometheus counts them.
        access_log=False,
        log_config=None,
        # Nobody in front of it is trusted to say who a client is, and nothing depends on it.
        proxy_headers=False,
    )
    return Server(config, coordinator)


def serve(app: FastAPI) -> None:
    """Until SIGINT or SIGTERM."""
    server = make_server(app)
    settings: CoordinatorSettings = app.state.coordinator.settings
    logger.info("coordinator at http://%s:%s, %s", settings.host, settings.port, access(app))
    server.run()


def access(app: FastAPI) -> str:
    """Who may do what, in a sentence."""
    coordinator: Coordinator = app.state.coordinator
    if coordinator.tokens:
        return "for those with a token"
    return "WITHOUT TOKENS: anyone on this machine may do anything; no other machine is let near it"
