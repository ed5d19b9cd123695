"""Tasks by lm-eval: which they are, what is computed for them and shared, and what comes out."""
