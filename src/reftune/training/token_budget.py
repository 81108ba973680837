"""How many tokens a micro-batch may have, where the settings leave it open."""

# More were no faster on a CPU, and fewer than the fewest would leave much of it unused. A GPU launches
# the same kernels for each micro-batch, which should be long.
MOST_TOKENS, MOST_TOKENS_ON_GPU, FEWEST_TOKENS = 4096, 16384, 256
ACTIVATIONS_SHARE = 0.5  # of the free memory: backward needs room beside what forward keeps


def token_budget(
    given: int | None,
    activation_bytes_per_token: float | None = None,
    free_bytes: float | None = None,
    replicas: int = 1,
    *,
    gpu: bool = False,
) -> int:
    """Return the padded tokens of a micro-batch, of each replica.

    It is the given number, or else the largest power of two for which the activations fit, within
    bounds. A power of two stays what it is while the free memory changes a little, and most models that
    fit at all reach the upper bound: a run that is started again repeats its numbers.

    Args:
        given: `compute.tokens_per_microbatch`.
        activation_bytes_per_token: what backward needs of a forward pass; None: not known.
        free_bytes: memory that is left beside weights, gradients and optimizer; None: not known.
        replicas: how many micro-batches are in work at once in this memory (`cpu_threads`).
        gpu: whether it is that of a GPU, for which the upper bound is another.
    """
    if given is not None:
        return given
    if activation_bytes_per_token is None or free_bytes is None:
        return MOST_TOKENS
    tokens = ACTIVATIONS_SHARE * free_bytes / (activation_bytes_per_token * replicas)
    budget = MOST_TOKENS_ON_GPU if gpu else MOST_TOKENS
    while budget > max(tokens, FEWEST_TOKENS):
        budget //= 2
    return budget
