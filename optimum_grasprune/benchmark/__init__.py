"""Measuring what pruning saves: drives real vLLM servers."""

from .server import Server, served

__all__ = ["Server", "served"]
