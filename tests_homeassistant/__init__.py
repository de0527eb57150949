"""Home Assistant discovery and examples/home-assistant/, tried with the real, newest Home Assistant.

`make test-homeassistant` installs that and runs these tests; plain `make test` does not.
"""
