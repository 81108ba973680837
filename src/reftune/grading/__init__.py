"""Is it right? Answers found, compared and judged; programs run in a sandbox."""
