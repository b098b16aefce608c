"""Modules that PEFT puts where a convolution stands: an adapter is a map on the base's weight."""
