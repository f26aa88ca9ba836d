"""What image files may cost: one of them, and those of a request together."""

from __future__ import annotations

from dataclasses import dataclass, field

from protos.errors import ImageTooLargeError, InvalidArgumentError


@dataclass
class ImageBudget:
    """What the images of one request may cost together.

    Attributes:
        max_byte_count: most bytes of all files.
        max_host_count: most hosts that their URLs, and the redirects of these, lead to.
    """

    max_byte_count: int
    max_host_count: int
    byte_count: int = 0
    hosts: set[str] = field(default_factory=set)

    def spend(self, byte_count: int) -> None:
        """Counts more bytes.

        Raises:
            ImageTooLargeError: they are too many.
        """
        self.byte_count += byte_count
        if self.byte_count > self.max_byte_count:
            raise ImageTooLargeError(
                f"the images of the request have {self.byte_count} bytes together or more;"
                f" the limit is {self.max_byte_count}"
            )

    def visit(self, host: str) -> None:
        """Counts another host.

        Raises:
            InvalidArgumentError: they are too many.
        """
        self.hosts.add(host)
        if len(self.hosts) > self.max_host_count:
            raise InvalidArgumentError(
                f"the image URLs lead to {len(self.hosts)} hosts;"
                f" the limit is {self.max_host_count}"
            )


def check_byte_count(byte_count: int, limit: int) -> None:
    """Passes the bytes of a file that have come so far.

    Raises:
        ImageTooLargeError: they are too many.
    """
    if byte_count > limit:
        raise ImageTooLargeError(f"the image has {byte_count} bytes or more; the limit is {limit}")
