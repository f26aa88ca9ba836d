"""The program internvl-gateway-keys: makes API keys, and shows and checks the file of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from pydantic_settings import CliPositionalArg, CliSubCommand, SettingsConfigDict, get_subcommand

from gateway.access.callers import Policy
from gateway.access.key_file import key_name, read_key_file
from gateway.access.keyring import Key
from gateway.access.new_keys import add_to_file, entry_of, new_key
from protos.process.facts import columns
from protos.process.settings import Options, read_settings

NO_LIMIT = "-"


class _Command(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class New(_Command):
    """Makes a key, and prints it, this once, to standard output: the file holds its sha256 alone.

    To replace a caller's key without a gap, make another one without --file, write its sha256
    behind the old one (sha256: [OLD, NEW]), and take OLD away when the caller uses the new key.
    """

    name: CliPositionalArg[str]
    """Name of the caller, which stands in metrics and logs."""
    file: Path | None = None
    """File that the key is added to; it is made if it is not there. A gateway that has it as
    --api-keys-file takes the key within a second. Default: the lines to add are printed to standard
    error."""

    def run(self) -> None:
        """Makes the key.

        Raises:
            ValueError: the name cannot be one, or the file cannot take it.
        """
        name, key = key_name(self.name), new_key()
        if self.file is None:
            entry = entry_of(name, key)
            sys.stderr.write(f"add this below `keys:` in the file of --api-keys-file:\n{entry}")
        else:
            add_to_file(self.file, name, key)
            sys.stderr.write(f"{name} is added to {self.file}, with the file's defaults\n")
        sys.stderr.flush()
        sys.stdout.write(f"{key}\n")


class List(_Command):
    """Shows who has a key, and what each may use."""

    file: CliPositionalArg[Path]
    """The file of keys."""

    def run(self) -> None:
        sys.stdout.write(columns([COLUMNS, *map(_row, read_key_file(self.file))]))


class Check(_Command):
    """Says whether a gateway would take the file, or all that is wrong with it."""

    file: CliPositionalArg[Path]
    """The file of keys."""

    def run(self) -> None:
        count = len(read_key_file(self.file))
        sys.stdout.write(f"{self.file} has {count} {'key' if count == 1 else 'keys'}\n")


class Program(Options):
    """API keys of the gateway: who may call, and what each may use.

    The file of --api-keys-file is YAML. Of each key it holds the name, the sha256 (or two, while
    one replaces the other), and what it may use; what is left out is as under `defaults`, or not
    limited:

    defaults: {requests_per_minute: 600}
    keys:
    - name: alice
      sha256: 5e88...
      models: [InternVL2_5-8B]
      requests_per_minute: 60
      tokens_per_minute: 100000
      images_per_minute: 120
      max_concurrent_request_count: 8
      may_use: [priority, file]
      most_urgent_priority: -5
      expires: 2027-12-31T00:00:00Z
    """

    model_config = SettingsConfigDict(
        env_prefix="INTERNVL_GATEWAY_KEYS_", cli_prog_name="internvl-gateway-keys"
    )

    new: CliSubCommand[New]
    list: CliSubCommand[List]
    check: CliSubCommand[Check]


COLUMNS = (
    "NAME", "KEYS", "MODELS", "REQUESTS/MIN", "TOKENS/MIN", "IMAGES/MIN", "AT A TIME", "MAY USE",
    "PRIORITY", "EXPIRES",
)  # fmt: skip


def _row(key: Key) -> tuple[str, ...]:
    return (key.caller.name, str(len(key.digests)), *_cells(key.caller.policy))


def _cells(policy: Policy) -> Iterator[str]:
    yield NO_LIMIT if policy.models is None else ",".join(policy.models)
    for limit in (
        policy.requests_per_minute,
        policy.tokens_per_minute,
        policy.images_per_minute,
        policy.max_concurrent_request_count,
    ):
        yield NO_LIMIT if limit is None else str(limit)
    yield ",".join(policy.may_use) or NO_LIMIT
    yield str(policy.most_urgent_priority) if "priority" in policy.may_use else NO_LIMIT
    yield policy.expires.isoformat() if policy.expires else NO_LIMIT


def main() -> None:
    """Runs the command that the first word names; exit status 1 when it cannot."""
    try:
        match get_subcommand(read_settings(Program)):
            case New() | List() | Check() as command:
                command.run()
    except ValueError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
