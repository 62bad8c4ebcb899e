"""Looks at a configuration before it costs anything. Stages and models come in; nothing is trained for good."""
