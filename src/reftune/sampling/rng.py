"""Random choices that depend on a row's seed and the token's position alone."""

import torch
from torch import Tensor


def sample_tokens(
    logits: Tensor, seeds: Tensor, t: Tensor | int, temperature: float, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Choose tokens by inverting the cumulative distribution at each stream's t-th random number.

    Args:
        logits: (rows, vocab), float32.
        seeds: (seeds,), the seeds.
        t: position of the token in its response; one for all seeds, or (seeds,).
        temperature: 0 takes the most likely token.
        rows: (seeds,), the row of `logits` that each stream chooses from; default: one for each.

    Returns:
        Token ids, and their log-probabilities under the distribution they come from, (seeds,) each.
    """
    scaled = logits if temperature in (0, 1) else logits / temperature
    probabilities = torch.softmax(scaled, dim=-1)
    if temperature:
        # A GPU adds in any order: in float32 later sums come out below earlier ones, and a token without
        # any probability might be drawn. A CPU adds one after the other, in float64 by itself.
        dtype = torch.float64 if logits.is_cuda else None
        cumulative = _of(probabilities.cumsum(-1, dtype=dtype), rows)
        total = cumulative[:, -1:]
        threshold = uniform(seeds, t).to(cumulative.dtype).unsqueeze(1) * total
        # Rounded to `total` it would choose the last token, however unlikely: stay below.
        threshold = threshold.minimum(total.nextafter(torch.zeros_like(total)))
        chosen = torch.searchsorted(cumulative, threshold, right=True).squeeze(1)
    else:
        chosen = _of(logits.argmax(-1), rows)
    row = torch.arange(len(chosen), device=chosen.device) if rows is None else rows
    return chosen, probabilities[row, chosen].log()


def nucleus_tokens(
    logits: Tensor,
    seeds: Tensor,
    t: Tensor | int,
    temperature: float,
    rows: Tensor | None = None,
    *,
    top_p: float,
) -> tuple[Tensor, Tensor]:
    """Choose as `sample_tokens` does, but only among the most likely tokens (Holtzman et al. 2020).

    Args:
        top_p: what their probabilities add up to at least; the fewest such tokens are left.

    Returns token ids, and their log-probabilities in the whole distribution, (seeds,) each.
    """
    scaled = logits if temperature in (0, 1) else logits / temperature
    logprobs = torch.log_softmax(scaled, dim=-1)
    likely, order = logprobs.exp().sort(dim=-1, descending=True, stable=True)
    enough_before = likely.cumsum(-1) - likely >= top_p  # never of the first, before which is 0
    outside = enough_before.gather(-1, order.argsort(-1))
    chosen, _ = sample_tokens(logits.masked_fill(outside, -torch.inf), seeds, t, temperature, rows)
    row = torch.arange(len(chosen), device=chosen.device) if rows is None else rows
    return chosen, logprobs[row, chosen]


def _of(table: Tensor, rows: Tensor | None) -> Tensor:
    return table if rows is None else table.index_select(0, rows)


def uniform(seeds: Tensor, t: Tensor | int) -> Tensor:
    """Return the t-th number of each stream, uniform in [0, 1), as float64.

    This is SplitMix64 (Steele et al. 2014), whose output can be computed for any t at once.
    """
    z = seeds + (torch.as_tensor(t, device=seeds.device) + 1) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return _shift(z ^ _shift(z, 31), 11).double() * 2.0**-53


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift signed 64-bit numbers right as if they were unsigned."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """Return the signed 64-bit number with the same low bits."""
    return (number + 2**63) % 2**64 - 2**63
