"""Every option of the gateway's process."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from gateway.addresses import AddressPolicy
from gateway.bodies import BodyLimits
from gateway.connections import ConnectionLimits
from gateway.data_urls import ContentLimits
from gateway.descriptors import default_connection_count, most_connections
from protos.process.settings import GIB, MIB, ServingSettings


class Settings(ServingSettings):
    """The gateway: OpenAI's HTTP interface in front of the vision service and the LLM service."""

    model_config = SettingsConfigDict(
        env_prefix="INTERNVL_GATEWAY_", cli_prog_name="internvl-gateway"
    )

    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and logs it."""
    vision_address: str = Field(default="127.0.0.1:50051", min_length=1)
    """Address of the vision service as gRPC writes it; all addresses of a name share the calls."""
    llm_address: str = Field(default="127.0.0.1:50052", min_length=1)
    """Address of the LLM service as gRPC writes it; all addresses of a name share the calls."""
    file_root: Path | None = None
    """Folder below which file:// URLs may read; none: they are refused."""
    allowed_private_hosts: tuple[str, ...] = ()
    """Hosts and networks (JSON list) that image URLs may lead to though they are not public."""
    max_body_byte_count: int = Field(default=72 * MIB, ge=1)
    """Largest request body, in bytes. In it, the largest image file takes a third more."""
    max_text_byte_count: int = Field(default=4 * MIB, ge=1)
    """Most bytes of a request body without the images that it holds as data URLs."""
    max_image_byte_count: int = Field(default=48 * MIB, ge=1)
    """Largest image file, in bytes."""
    max_total_image_byte_count: int = Field(default=128 * MIB, ge=1)
    """Most bytes of all image files of one request together."""
    max_image_count: int = Field(default=64, ge=0)
    """Most images in one request."""
    max_image_host_count: int = Field(default=16, ge=1)
    """Most hosts that the image URLs of one request lead to, redirects included."""
    max_request_count: int = Field(default=256, ge=1)
    """Most chat requests in flight; further ones are refused with 429."""
    max_held_byte_count: int = Field(default=3 * GIB, ge=1)
    """Most bytes of bodies and image files that all requests hold together, without the first
    64 KiB of each; further ones are refused with 429. The process may take a third more."""
    max_connection_count: int = Field(default_factory=default_connection_count, ge=1)
    """Most connections of clients; a further one takes the place of the longest idle one. By
    default 4096, or what the limit of open files has room for."""
    header_seconds: float = Field(default=30.0, gt=0)
    """Longest time for a request's head to arrive, from its first byte."""
    idle_seconds: float = Field(default=30.0, gt=0)
    """Longest time that a connection may stay open without a request, or without reading on in the
    end of an answer. Behind a load balancer: more than its own."""
    body_seconds: float = Field(default=30.0, gt=0)
    """Longest time for a request's body to arrive."""
    image_fetch_seconds: float = Field(default=10.0, gt=0)
    """Longest time to fetch one image, redirects included."""
    request_seconds: float = Field(default=300.0, gt=0, le=86_400)
    """Longest time for one chat request, images included; at most a day."""

    @field_validator("file_root")
    @classmethod
    def _is_folder(cls, root: Path | None) -> Path | None:
        if root is not None and not root.is_dir():
            raise ValueError(f"{root} is not a folder")
        return root

    @field_validator("max_connection_count")
    @classmethod
    def _fits(cls, count: int) -> int:
        if count > (most := most_connections()):
            raise ValueError(f"{count} connections; the limit of open files has room for {most}")
        return count

    @field_validator("allowed_private_hosts")
    @classmethod
    def _parsable(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        AddressPolicy.parse(entries)
        return entries

    @property
    def body_limits(self) -> BodyLimits:
        """What the body of a request may cost."""
        content = ContentLimits(
            self.max_text_byte_count, self.max_image_count, self.max_image_byte_count
        )
        return BodyLimits(self.max_body_byte_count, self.body_seconds, content)

    @property
    def connection_limits(self) -> ConnectionLimits:
        """What clients may hold."""
        return ConnectionLimits(self.max_connection_count, self.header_seconds, self.idle_seconds)

    @property
    def address_policy(self) -> AddressPolicy:
        """Which addresses image URLs may lead to."""
        return AddressPolicy.parse(self.allowed_private_hosts)
