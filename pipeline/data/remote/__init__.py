"""Files on the hub and on servers: asked after, fetched, verified, and kept as long as they are read."""
