"""The engines: what runs an encoder's network on a machine, and what decodes JPEGs on a GPU."""
