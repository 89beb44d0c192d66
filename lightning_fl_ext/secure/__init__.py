"""Secure aggregation: the sum of vectors of which none is seen. Pure: bytes and arrays alone."""

from lightning_fl_ext.secure.client import SecureClient
from lightning_fl_ext.secure.errors import SecureAggregationError, UpdateRefused
from lightning_fl_ext.secure.roster import Announcement, Roster, Terms
from lightning_fl_ext.secure.server import SecureServer
from lightning_fl_ext.secure.signatures import write_site_keys

__all__ = [
    "Announcement",
    "Roster",
    "SecureAggregationError",
    "SecureClient",
    "SecureServer",
    "Terms",
    "UpdateRefused",
    "write_site_keys",
]
