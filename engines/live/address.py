"""Where a page is served, and who may see it."""

from __future__ import annotations

import hmac
import ipaddress
import re
from dataclasses import dataclass, field

from edgeuda.errors import ConfigError

TOKEN_VARIABLE = "EDGEUDA_SERVE_TOKEN"
"""Environment variable: the token, which then stands in no list of processes."""
SHORTEST = 12
"""Characters of a token at least."""


@dataclass(frozen=True)
class Address:
    """An address to listen at.

    Attributes:
        host: An IP address.
        port: The port; 0 lets the system choose one.
        token: What a client must know; None lets every program of this machine in.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = field(default=None, repr=False)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def url(self) -> str:
        """What a browser is given; it holds no token."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/"

    def knows(self, said: str) -> bool:
        """Whether a client that said this may see the page; takes as long for a near miss."""
        return self.token is None or hmac.compare_digest(said.encode(), self.token.encode())


def address_of(text: str, token: str | None) -> Address:
    """Read ``8080`` or ``0.0.0.0:8080``.

    Args:
        text: A port of this machine alone, or an IP address and a port.
        token: What a client must know; an address that others reach must have one.

    Raises:
        ConfigError: If it is neither, or others reach it and there is no token, or a short one.
    """
    found = re.fullmatch(r"(?:(\[[^\]]*\]|[^:]*):)?(\d{1,5})", text.strip())
    host = "127.0.0.1" if found is None or found[1] is None else found[1].strip("[]")
    host = "127.0.0.1" if host == "localhost" else host
    try:
        ipaddress.ip_address(host)
    except ValueError:
        found = None
    if found is None or not 1 <= int(found[2]) <= 65535:
        msg = (
            f"`serve`: expected a port from 1 to 65535, or an IP address and a port such as "
            f"0.0.0.0:8080, found {text!r}"
        )
        raise ConfigError(msg)
    if token is not None and (len(token) < SHORTEST or not token.isascii() or ":" in token):
        msg = (
            f"`serve_token`: expected at least {SHORTEST} ASCII characters without a colon. "
            "This makes one: openssl rand -hex 16"
        )
        raise ConfigError(msg)
    address = Address(host, int(found[2]), token)
    if token is None and not address.is_loopback:
        msg = (
            f"`serve` {text}: others reach this address, and would see what the camera sees. Set "
            f"the environment variable {TOKEN_VARIABLE} or `serve_token`, or give the port alone, "
            "which only this machine reaches"
        )
        raise ConfigError(msg)
    return address
