"""The simulator's own certificate authority, made anew at each start."""

import datetime as dt
import ssl
from pathlib import Path
from typing import Literal

Certificate = Literal["right", "wrong_host", "expired"]
"""What kind of certificate to show: the others are for tests of clients that must refuse them."""


class SimulatorError(Exception):
    """The simulator cannot do what was asked."""


def make_context(host: str, directory: Path, certificate: Certificate) -> tuple[ssl.SSLContext, Path]:
    """Make a server's TLS context, and write the CA file that a client needs to trust it.

    Args:
        host: The listening address; the certificate names it beside 127.0.0.1 and localhost.
        directory: Where ``ca.pem`` goes.
        certificate: What is wrong with the certificate, if anything.

    Raises:
        SimulatorError: The package `trustme` is not installed.
    """
    try:
        import trustme  # noqa: PLC0415  of the extra [demo]; only a simulator needs it
    except ImportError as err:
        raise SimulatorError("the simulator needs the package trustme: pip install 'ccgateway2mqtt[demo]'") from err
    authority = trustme.CA()
    names = {"127.0.0.1": None, "localhost": None, host: None}
    if host in {"0.0.0.0", "::"}:  # noqa: S104  compared, not listened on
        del names[host]
    if certificate == "wrong_host":
        names = {"another.invalid": None}
    begins = ends = None
    if certificate == "expired":
        ends = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
        begins = ends - dt.timedelta(days=30)
    issued = authority.issue_cert(*names, not_before=begins, not_after=ends)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    issued.configure_cert(context)
    ca_file = directory / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    return context, ca_file
