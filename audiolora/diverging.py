"""The error of a training that learnt nothing because its loss was never finite."""


class DivergedError(ValueError):
    """No loss that a training is judged by was finite: mostly its learning rate is too high."""
