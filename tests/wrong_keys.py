"""Keys that are none: random ones, and those that are nearly one that is."""

from __future__ import annotations

import base64
import random
import string
from collections.abc import Callable, Iterator

from gateway.access.key_file import KEY_PREFIX
from gateway.access.keyring import digest_of

ALPHABET = string.ascii_letters + string.digits + "-_"
PRINTABLE = "".join(map(chr, range(33, 127)))
# What a terminal, an editor or an attacker may put beside a key, or in it.
STRANGE = ("\0", " ", "\t", "\r\n", "\x7f", "é", "\u200b", "\u2044", "е", "𝟎", "\ufeff", "\udce4")
Rule = Callable[[random.Random, str], str]


def _random(chance: random.Random, _: str) -> str:
    return KEY_PREFIX + "".join(chance.choices(ALPHABET, k=43))


def _printable(chance: random.Random, _: str) -> str:
    return "".join(chance.choices(PRINTABLE, k=chance.randint(1, 100)))


def _one_off(chance: random.Random, key: str) -> str:
    at = chance.randrange(len(key))
    other = chance.choice([each for each in PRINTABLE if each != key[at]])
    return key[:at] + other + key[at + 1 :]


def _one_bit(chance: random.Random, key: str) -> str:
    at = chance.randrange(len(key))
    return key[:at] + chr(ord(key[at]) ^ (1 << chance.randrange(7))) + key[at + 1 :]


def _swapped(chance: random.Random, key: str) -> str:
    at = chance.choice([i for i in range(len(key) - 1) if key[i] != key[i + 1]])
    return key[:at] + key[at + 1] + key[at] + key[at + 2 :]


def _part(chance: random.Random, key: str) -> str:
    length = chance.randrange(len(key))
    return key[:length] if chance.random() < 0.5 else key[len(key) - length :]


def _longer(chance: random.Random, key: str) -> str:
    more = "".join(chance.choices(PRINTABLE, k=chance.randint(1, 600)))
    return key + more if chance.random() < 0.5 else more + key


def _case(chance: random.Random, key: str) -> str:
    other = key.swapcase() if chance.random() < 0.2 else key.upper()
    at = chance.choice([i for i, each in enumerate(key) if each.isalpha()])
    return chance.choice([other, key.lower(), key[:at] + key[at].swapcase() + key[at + 1 :]])


def _strange(chance: random.Random, key: str) -> str:
    at = chance.randint(0, len(key))
    return key[:at] + chance.choice(STRANGE) + key[at:]


def _digest(chance: random.Random, key: str) -> str:
    digest = digest_of(key.encode())
    forms = [digest.hex(), digest.hex().upper(), base64.b64encode(digest).decode()]
    forms += [
        KEY_PREFIX + base64.urlsafe_b64encode(digest).decode().rstrip("="),
        f"sha256:{forms[0]}",
    ]
    return chance.choice([*forms, digest.decode("latin-1")])


def _twice(chance: random.Random, key: str) -> str:
    return chance.choice([key + key, f"{key},{key}", f"{key}, {key}", f'"{key}"', f"Bearer {key}"])


RULES: dict[str, Rule] = {
    "random": _random,
    "printable": _printable,
    "one character off": _one_off,
    "one bit off": _one_bit,
    "two characters swapped": _swapped,
    "a part": _part,
    "longer": _longer,
    "another case": _case,
    "strange characters": _strange,
    "the digest": _digest,
    "twice": _twice,
}


def wrong_keys(right: list[str], count: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Yields so many keys that are not among the right ones, each after its rule's name.

    They may hold what no header can: NUL, line breaks, lone surrogates.
    """
    chance = random.Random(seed)
    names = list(RULES)
    while count:
        name = names[count % len(names)]
        key = RULES[name](chance, chance.choice(right))
        if key not in right:
            count -= 1
            yield name, key
