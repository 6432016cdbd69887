"""Measuring what pruning saves: drives real vLLM servers."""

from .server import Completion, Server, ServerError, served

__all__ = ["Completion", "Server", "ServerError", "served"]
