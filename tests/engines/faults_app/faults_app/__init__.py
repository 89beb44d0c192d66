"""Clients that do nothing but what they are told, faults included."""
