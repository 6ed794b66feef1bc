"""Where a model comes from: found, fetched, checked and read."""
