"""A small adapter: CC-Gateway agent events by long polling, to MQTT and back."""

__version__ = "0.1.0"
