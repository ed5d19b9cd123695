"""Text: from the formats of files to the stream of training rows."""
