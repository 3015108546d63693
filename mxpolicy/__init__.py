"""mxpolicy hands each message to the first MX host that can be reached."""

__version__ = "0.1"
