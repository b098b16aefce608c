import math

import pytest

from audiolora.speech.training.settings import TrainingSettings


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, "epochs must be at least 1, got 0"),
        ("batch_size", 0, "batch_size must be at least 1, got 0"),
        ("gradient_accumulation", -1, "gradient_accumulation must be at least 1, got -1"),
        ("learning_rate", 0.0, "learning_rate must be positive and finite, got 0.0; try 3e-3"),
        ("learning_rate", -1e-3, "learning_rate must be positive"),
        ("learning_rate", math.nan, "learning_rate must be positive"),
        ("learning_rate", math.inf, "learning_rate must be positive"),
        ("warmup", 1.0, r"warmup is a share of the steps in \[0, 1\), got 1.0"),
        ("warmup", -0.1, "warmup is a share"),
        ("adam_beta2", 1.0, r"adam_beta2 must lie in \[0, 1\), got 1.0"),
        ("adam_beta2", math.nan, "adam_beta2 must lie"),
        ("warmup", math.nan, "warmup is a share"),
        ("patience", -1, "patience and workers must not be negative, got -1 and 0"),
        ("workers", -2, "patience and workers must not be negative, got 0 and -2"),
        ("seed", -1, r"seed must be in \[0, 2\*\*32\), got -1"),
        ("seed", 2**32, "seed must be in"),
        ("context", "short", "context must be one of auto, full, mix, got 'short'"),
    ],
)
def test_a_setting_outside_its_range(name, value, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**{name: value})


def test_the_bounds_themselves():
    TrainingSettings(epochs=1, batch_size=1, gradient_accumulation=1, warmup=0.0, patience=0, seed=2**32 - 1)


def test_settings_cannot_be_changed():
    with pytest.raises(AttributeError):
        TrainingSettings().epochs = 3
