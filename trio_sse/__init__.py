"""trio_sse: a server-push hub for Python on Trio."""
