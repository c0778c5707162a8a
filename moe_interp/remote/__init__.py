"""Models on NDIF servers: how blocks are sent, waited for, and what goes wrong in plain words."""

from moe_interp.remote._backend import ServerBackend, Traffic
from moe_interp.remote._connection import Connection, VersionDifferenceWarning
from moe_interp.remote._server import Server

__all__ = ["Connection", "Server", "ServerBackend", "Traffic", "VersionDifferenceWarning"]
