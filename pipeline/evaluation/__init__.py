"""What a model is worth: perplexity, samples, latency and memory."""
