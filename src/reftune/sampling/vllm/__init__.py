"""vLLM as a sampler: an engine in the trainer's process, or behind an address."""

PORT = 8300  # of a server of samples, where nobody names another
