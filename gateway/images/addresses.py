"""Network addresses that an image URL may lead to: public ones, and those that settings allow."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from aiodns.error import ARES_EBADNAME, ARES_ENODATA, ARES_ENONAME, ARES_ENOTFOUND
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import AsyncResolver

from protos.errors import AccessDeniedError

# For all addresses of a name. A name server is asked again ever more slowly; from its answers the
# library learns how fast it is, and would give up on one that is slow for once.
RESOLVE_SECONDS = 5.0
FIRST_TRY_SECONDS = 1.0
TRY_COUNT = 5
# A name server's answers for a name that is not there, or has no addresses.
UNKNOWN_NAME_CODES = frozenset({ARES_ENOTFOUND, ARES_ENODATA, ARES_ENONAME, ARES_EBADNAME})
# IPv6 addresses that the Internet routes (RFC 4291, section 2.4); all others are special.
GLOBAL_UNICAST = IPv6Network("2000::/3")
# IPv4 addresses seen through a translator (RFC 6052, section 2.1).
NAT64 = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class AddressPolicy:
    """Decides whether the gateway may connect to an address.

    Attributes:
        names: host names whose addresses are all allowed; lower case, no trailing dot.
        networks: networks that are allowed although they are not public.
    """

    names: frozenset[str]
    networks: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def parse(cls, entries: Iterable[str]) -> AddressPolicy:
        """Reads host names, addresses and networks.

        Raises:
            ValueError: an entry with a slash or colon is no network, or one is empty.
        """
        names, networks = set(), []
        for entry in entries:
            if is_numeric(entry) or "/" in entry:
                networks.append(ip_network(entry))
            elif entry:
                names.add(_canonical(entry))
            else:
                raise ValueError("an allowed host is empty")
        return cls(frozenset(names), tuple(networks))

    def allowing(self, name: str) -> AddressPolicy:
        """Returns a policy that allows all addresses of one more name."""
        return replace(self, names=self.names | {_canonical(name)})

    def check(self, host: str, address: str) -> None:
        """Passes an address that `host` (a name, or the address itself) stands for.

        Raises:
            AccessDeniedError: it is neither public nor allowed.
        """
        if not self._allows(host, address):
            raise AccessDeniedError(
                "the image's URL leads to an address that is not public; this server allows such"
                " addresses only when its option allowed_private_hosts lists them"
            )

    def _allows(self, host: str, address: str) -> bool:
        try:
            parsed = _unwrapped(ip_address(address))
        except ValueError:  # an old spelling such as 127.1, which sockets would understand
            return False
        listed = _canonical(host) in self.names or any(parsed in net for net in self.networks)
        return listed or _is_public(parsed)


def read_address(host: str) -> str:
    """Returns the address that a URL's host is, not the name of; empty if it is a name.

    Old spellings come as they are when they look like addresses, and as addresses (127.0.0.1 for
    0x7f.1) when they look like names.
    """
    if is_numeric(host):
        return host
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return ""


def is_numeric(host: str) -> bool:
    """Returns whether a URL's host is meant as an address, not as a name that DNS resolves."""
    return ":" in host or host.replace(".", "").isdigit()


def _canonical(name: str) -> str:
    return name.lower().rstrip(".")


def _unwrapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Returns the IPv4 address that an IPv6 address (mapped, 6to4, NAT64) carries, if one."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


class CheckedResolver(AbstractResolver):
    """Resolves names, and gives out only addresses that the policy allows.

    The connection is made to what this returns, so a name cannot show one address to the check and
    another to the connection. Numeric hosts never come here: check them before.

    No thread waits for a name server; /etc/hosts and the search domains of resolv.conf count.
    """

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy
        self._resolver = AsyncResolver(timeout=FIRST_TRY_SECONDS, tries=TRY_COUNT)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Returns the addresses of a name.

        Raises:
            AccessDeniedError: one of them is not allowed.
            gaierror: the name has none (EAI_NONAME), or no name server answers (EAI_AGAIN).
            ValueError: no name has this form.
        """
        host.encode("idna")  # refuses what has empty or too long parts
        results = _spelled(host, port) or await self._ask(host, port, family)
        for result in results:
            self._policy.check(host, result["host"])
        return results

    async def _ask(self, host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
        try:
            asking = self._resolver.resolve(host, port, family)
            return await asyncio.wait_for(asking, RESOLVE_SECONDS)
        except asyncio.TimeoutError as error:
            raise socket.gaierror(socket.EAI_AGAIN, "no name server answered in time") from error
        except OSError as error:
            code = getattr(error.__cause__, "args", (None,))[0]
            known = code in UNKNOWN_NAME_CODES
            raise socket.gaierror(
                socket.EAI_NONAME if known else socket.EAI_AGAIN, "the name has no address"
            ) from error

    async def close(self) -> None:
        """Ends the questions that are under way."""
        await self._resolver.close()


def _spelled(host: str, port: int) -> list[ResolveResult]:
    """Returns the IPv4 address that a name such as 0x7f.1 spells in an old way, if it is one."""
    if not (address := read_address(host)):
        return []
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return [
        ResolveResult(
            hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=flags
        )
    ]
