"""Time series: frames, checks, scaling, windows, forecasters, metrics, streaming."""
