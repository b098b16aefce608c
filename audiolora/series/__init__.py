"""Time series: frames, checks, windows, scaling, metrics, and the forecaster that carries an adapter a device.

Needs the extra: ``pip install "audiolora[series]"``.
"""

try:
    import pandas  # noqa: F401  every module here works on its frames
except ImportError as error:
    raise ImportError('audiolora.series needs pandas; pip install "audiolora[series]"') from error
