"""The training rows: parts dealt to lanes, read, packed, mixed, and a position to go on at."""
