"""Ways of adapting a model beside one another, on one's own model and data: same steps, several seeds, chosen rates.

A task (`comparison.sensor`, `comparison.speech`) is a trained base, data to train on, to choose by and to measure on; a
way (`comparison.ways`) is what is trained of the base; a trial is one training. See ``recipes/compare_methods.py``.
"""
