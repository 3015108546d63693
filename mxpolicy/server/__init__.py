"""Servers that a mail server asks: each speaks one protocol, over any stream."""
