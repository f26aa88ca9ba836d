"""Which addresses an image URL may lead to."""

from __future__ import annotations

import pytest

from gateway.images.addresses import AddressPolicy, is_numeric
from protos.errors import AccessDeniedError

CLOSED = AddressPolicy.parse([])


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"],
)
def test_public_addresses_pass(address: str) -> None:
    CLOSED.check("example.com", address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2001::1",
        "2001:db8::1",
        "fc00::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "127.1",
        "2130706433",
        "0177.0.0.1",
        "127.0.0.1.",
    ],
)
def test_all_others_are_refused(address: str) -> None:
    with pytest.raises(AccessDeniedError, match="allowed_private_hosts"):
        CLOSED.check(address, address)


def test_listed_networks_and_addresses_pass() -> None:
    policy = AddressPolicy.parse(["127.0.0.1", "10.0.0.0/8", "fd00::/8"])
    for address in ("127.0.0.1", "10.9.9.9", "fd00::5", "::ffff:10.0.0.1"):
        policy.check("anything", address)
    with pytest.raises(AccessDeniedError):
        policy.check("anything", "127.0.0.2")


def test_listed_names_pass_whatever_they_stand_for() -> None:
    policy = AddressPolicy.parse(["Pictures.internal"])
    policy.check("pictures.internal.", "10.0.0.1")
    with pytest.raises(AccessDeniedError):
        policy.check("other.internal", "10.0.0.1")


@pytest.mark.parametrize("entry", ["", "10.0.0.0/33", "10.0.0.1/8", "127.1", "::g"])
def test_a_malformed_entry_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        AddressPolicy.parse([entry])


def test_numeric_hosts_are_told_from_names() -> None:
    assert all(map(is_numeric, ["127.0.0.1", "127.1", "2130706433", "127.0.0.1.", "::1"]))
    assert not any(map(is_numeric, ["localhost", "0x7f.1", "1.example"]))
