"""The one error of a bundle that is not what it says."""


class BundleError(ValueError):
    """A bundle, or a file of it, is refused; the message names the file, the rule and the remedy."""
