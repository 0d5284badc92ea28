"""The engines: what runs an encoder's network on a machine."""
