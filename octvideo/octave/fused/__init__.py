"""Networks that only compute scores: norms folded, layers joined, run in sequences."""
