"""The learning rate over a run, of models and of the networks that predict their indices."""


def rate_share(step: int, steps: int, *, warmup: int, decay_share: float) -> float:
    """Share of the learning rate at a step, from 0, of so many: warm-up, constant, linear decay."""
    left = (steps - step) / max(1, decay_share * steps)
    return min(1.0, (step + 1) / warmup, max(left, 0.0))
