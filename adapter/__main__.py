"""`python -m adapter` is the command `ccgateway2mqtt`."""

from adapter.cli import main

if __name__ == "__main__":
    main(prog_name="ccgateway2mqtt")
