"""The edges: sockets, TLS and DNS under asyncio."""
