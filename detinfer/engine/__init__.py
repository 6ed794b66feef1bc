"""The engine: requests, pages, scheduling and steps. Knows nothing of HTTP."""
