"""vLLM: real servers and their clients, or its offline benchmarks. Nothing of vLLM is imported."""
