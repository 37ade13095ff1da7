"""gRPC servers and channels with mutual TLS; plaintext on loopback only, and only if asked for."""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mpcache.parties.certificates import Identity, fingerprint, host_name, names_of
from mpcache.protocols.errors import ConfigError, IdentityError, PeerLost

log = logging.getLogger("mpcache.generation.network")

DEFAULT_TIMEOUT = 60.0
PLAINTEXT = "plaintext"
"""Stands for a certificate where there is none."""
PART_BYTES = 1 << 20
"""The largest payload of one gRPC message: larger ones travel in parts (link.py, chunks.py)."""
MESSAGE_BYTES = PART_BYTES + (1 << 12)
"""The largest gRPC message that a process accepts: a part and its headers."""
REQUEST_BYTES = 1 << 16
"""The largest that the dealer accepts: a request."""


def _options(timeout: float, message_bytes: int = MESSAGE_BYTES) -> list[tuple[str, int | str]]:
    """timeout: seconds that a silent network is borne, as every wait is."""
    return [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_metadata_size", 1 << 14),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", max(1, round(timeout * 1e3))),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_connection_idle_ms", 30_000),  # without a call
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),  # an address is where a connection goes, the first handshake's and this one's
        ("grpc.so_reuseport", 0),  # so that a port in use is an error
        ("grpc.use_local_subchannel_pool", 1),
    ]


def split_address(address: str) -> tuple[str, int]:
    """'host:port' in parts. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{address!r} is not an address: write host:port")
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_loopback(address: str) -> None:
    """Refuse plaintext to anywhere but this machine."""
    if not _is_loopback(split_address(address)[0]):
        raise ConfigError(f"without TLS (insecure) only a loopback address is allowed, not {address}")


def open_server(
    address: str,
    identity: Identity | None,
    workers: int,
    timeout: float = DEFAULT_TIMEOUT,
    message_bytes: int = MESSAGE_BYTES,
) -> tuple[grpc.Server, int]:
    """A server bound to `address` (port 0: any free one), not yet started, and its port.

    identity None: plaintext, on loopback only. workers: calls at a time; one more is refused at once. Raises
    ConfigError if the address cannot be had.
    """
    split_address(address)
    server = grpc.server(
        futures.ThreadPoolExecutor(workers), options=_options(timeout, message_bytes), maximum_concurrent_rpcs=workers
    )
    try:
        if identity is None:
            require_loopback(address)
            port = server.add_insecure_port(address)
        else:
            pair = [(identity.key, identity.certificate)]
            credentials = grpc.ssl_server_credentials(pair, identity.authority, require_client_auth=True)
            port = server.add_secure_port(address, credentials)
    except RuntimeError:
        port = 0
    if not port:
        raise ConfigError(f"cannot listen on {address}: the port is in use, or the address is not this machine's")
    return server, port


def serve_stream(
    server: grpc.Server,
    method: str,
    handler: Callable[[Iterator[Any], grpc.ServicerContext], Iterator[Any]],
    read: Callable[[bytes], Any] | None = None,
    write: Callable[[Any], bytes] | None = None,
) -> None:
    """Serve the method '/service/name', whose handler is given an iterator of messages and returns one. read, write:
    from bytes and to bytes; None: the handler's messages are bytes."""
    _, service, name = method.split("/")
    methods = {name: grpc.stream_stream_rpc_method_handler(handler, read, write)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))


def open_channel(
    address: str, identity: Identity | None, role: str, timeout: float = DEFAULT_TIMEOUT
) -> tuple[grpc.Channel, str]:
    """(a channel to the server of `role` at `address`, and to no other; its certificate's fingerprint).

    A first handshake finds out who is there, and the channel trusts that certificate alone: gRPC by itself would also
    take a wildcard, or a common name where there is no DNS name, for the role. Raises PeerLost that says what is wrong.
    """
    split_address(address)
    options = _options(timeout)
    if identity is None:
        require_loopback(address)
        _connected(address, role, timeout).close()
        return grpc.insecure_channel(address, options=options), PLAINTEXT
    there = _server_certificate(address, identity, role, timeout)
    credentials = grpc.ssl_channel_credentials(there, identity.key, identity.certificate)
    options.append(("grpc.ssl_target_name_override", host_name(role)))
    return grpc.secure_channel(address, credentials, options), fingerprint(there)


def _connected(address: str, role: str, timeout: float) -> socket.socket:
    try:
        return socket.create_connection(split_address(address), timeout=timeout)
    except (OSError, UnicodeError) as error:  # UnicodeError: of a name that is none
        reason = getattr(error, "strerror", None) or error
        raise _unreachable(role, f"nothing answers at {address} ({reason}): is the {role} running there?") from None


def _unreachable(role: str, why: str) -> PeerLost:
    return PeerLost(why, told=f"the {role} cannot be reached")


def _server_certificate(address: str, identity: Identity, role: str, timeout: float) -> bytes:
    """The certificate (PEM) shown at `address`, once it is one of the authority's with the role as a DNS name, and the
    server has taken ours. Raises PeerLost."""
    where = f"the {role} at {address}"
    with _connected(address, role, timeout) as connection:
        try:
            with _context(identity).wrap_socket(connection, server_hostname=host_name(role)) as tls:
                greeting = tls.recv(1)  # a server that refuses our certificate says so now (TLS 1.3); gRPC's greets
                shown = tls.getpeercert(binary_form=True) if greeting else None
        except ssl.SSLCertVerificationError as error:
            raise _unreachable(role, f"the certificate of {where} is refused: {error.verify_message}") from None
        except TimeoutError:
            raise _unreachable(role, f"{where} accepts connections, but said nothing for {timeout:g} seconds") from None
        except OSError as error:
            reason = getattr(error, "reason", None) or error
            raise _unreachable(
                role, f"{where} refused this {identity.role}'s certificate, or does not use TLS ({reason})"
            ) from None
    if not shown:
        raise _unreachable(role, f"{where} accepts connections, but ended this one")
    certificate = ssl.DER_cert_to_PEM_cert(shown).encode()
    if host_name(role) not in names_of(certificate):
        raise _unreachable(role, f"the certificate of {where} is refused: {host_name(role)} is none of its DNS names")
    return certificate


def _authorities(pem: bytes) -> bytes:
    """As DER: comments beside the certificates may be in any encoding."""
    return b"".join(c.public_bytes(Encoding.DER) for c in x509.load_pem_x509_certificates(pem))


def _context(identity: Identity) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=_authorities(identity.authority))
    context.hostname_checks_common_name = False
    context.set_alpn_protocols(["h2"])
    with tempfile.TemporaryDirectory() as folder:  # the ssl module reads keys from files only
        certificate, key = Path(folder, "certificate"), Path(folder, "key")
        certificate.write_bytes(identity.certificate)
        key.touch(mode=0o600)
        key.write_bytes(identity.key)
        try:
            context.load_cert_chain(certificate, key)
        except ssl.SSLError as error:
            raise IdentityError(f"this {identity.role}'s certificate cannot be used: {error}") from None
    return context


def on_end(context: grpc.ServicerContext, callback: Callable[[], None]) -> None:
    """Call back when the call ends, for whatever reason: at once if it has ended."""
    if not context.add_callback(callback):
        callback()


@dataclass(frozen=True)
class Peer:
    """Who is at the other end of a call. certificate: its fingerprint, by which peers are told apart."""

    role: str
    certificate: str

    def __str__(self) -> str:
        return f"{self.role} {self.certificate[:16]}"


def require_peer(context: grpc.ServicerContext, roles: tuple[str, ...], insecure: bool) -> Peer:
    """The connected peer by its certificate, of which DNS names alone make a role. Ends the call if it is none of
    `roles`."""
    if insecure:
        return Peer(roles[0], PLAINTEXT)
    certificate = bytes(next(iter(context.auth_context().get("x509_pem_cert", [])), b""))
    names = names_of(certificate)
    for role in roles:
        if host_name(role) in names:
            return Peer(role, fingerprint(certificate))
    wanted = " or ".join(roles)
    log.warning("refused %s: its certificate is not of the role %s", context.peer(), wanted)
    context.abort(grpc.StatusCode.PERMISSION_DENIED, f"your certificate is not of the role {wanted}")
    raise AssertionError("abort does not return")
