"""HTTP: one client, downloads that resume and hash while bytes arrive, and files that are read in parts."""

from tea_models.net.client import Client, Request
from tea_models.net.download import download
from tea_models.net.http_source import HttpSource
from tea_models.net.retry import RetryPolicy

__all__ = ["Client", "HttpSource", "Request", "RetryPolicy", "download"]
