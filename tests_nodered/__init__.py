"""The shipped Node-RED flows in a real Node-RED; run by `make test-nodered`, not by `make test`."""
