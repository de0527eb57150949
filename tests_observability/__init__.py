"""examples/prometheus/ and examples/grafana/, tried with the real Prometheus on a real run of the adapter.

`make test-observability` installs what is needed and runs these tests; plain `make test` does not.
"""
