"""Tests of the promises: on the simulator over HTTPS, on real brokers, on real files."""
