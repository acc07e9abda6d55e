"""The components of a transformer, each in the registry of its config key."""
