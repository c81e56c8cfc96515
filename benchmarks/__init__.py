"""Fan-out, measured against the obvious way; README.md says how to run it."""
