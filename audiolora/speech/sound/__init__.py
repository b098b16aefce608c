"""What happens to a clip on its way to the model: simulated channels, and augmentation."""
