"""What an enrolled device can send to a coordinator's ports once it does not do as it should."""

import socket
import ssl
from base64 import b64encode

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from federation import ToyFederation
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from strangers import H2_PREFACE

from fedpeft.flower.fleet_client import FleetClient, FleetTarget
from fedpeft.flower.superlink import node_of
from fedpeft_client.connection.grpc_client import Link


class Insider:
    """One enrolled device without an agent: its keys sign whatever a test sends.

    Args:
        federation: enrols it.
        name: of the device.
    """

    def __init__(self, federation: ToyFederation, name: str) -> None:
        self.home = federation.enrol(name)
        self.settings, self._ca = federation.settings, federation.home.ca_certificate
        self._key = load_pem_private_key(self.home.device_key.read_bytes(), password=None)
        self.public = public_key_to_bytes(self._key.public_key())
        self.node = Node(node_id=node_of(self.public))

    def head(self, route: str, size: int, *more: str) -> bytes:
        """The signed line and headers of a request with a body of that size."""
        at = now().isoformat()
        lines = [
            f"POST /v1/fleet/{route} HTTP/1.1", "host: x", f"content-length: {size}",
            f"flwr-public-key: {b64encode(self.public).decode()}", f"flwr-timestamp: {at}",
            f"flwr-signature: {b64encode(sign_message(self._key, at.encode())).decode()}", *more,
        ]  # fmt: skip
        return "\r\n".join(lines).encode() + b"\r\n\r\n"

    def line(self) -> ssl.SSLSocket:
        """A connection to the gateway."""
        trust = ssl.create_default_context(cafile=str(self._ca))
        plain = socket.create_connection(("localhost", self.settings.fleet_port), 5.0)
        return trust.wrap_socket(plain, server_hostname="localhost")

    def client(self) -> FleetClient:
        """As the agent's."""
        address, node_key = f"localhost:{self.settings.fleet_port}", self.home.device_key.read_bytes()
        return FleetClient(FleetTarget(address=address, ca=self._ca.read_bytes(), node_key=node_key))

    def pull_body(self) -> bytes:
        """Of a request for messages."""
        return PullMessagesRequest(node=self.node).SerializeToString()

    def answer_body(self) -> bytes:
        """Of an answer that nobody asked for, in another's name."""
        about = Metadata(run_id=1, message_id="ab" * 32, src_node_id=1, dst_node_id=1, reply_to_message_id="cd" * 32)
        return PushMessagesRequest(
            node=self.node,
            messages_list=[ProtoMessage(metadata=about)],
            message_object_trees=[ObjectTree(object_id="ab" * 32)],
        ).SerializeToString()

    def ask(self, client: FleetClient) -> PullMessagesResponse:
        """An honest request."""
        return client.ask(PullMessagesRequest(node=self.node), PullMessagesResponse)

    def pull(self) -> PullMessagesResponse:
        """An honest request, over a connection of its own."""
        client = self.client()
        try:
            return self.ask(client)
        finally:
            client.close()

    def h2(self) -> ssl.SSLSocket:
        """An HTTP/2 connection to the port of enrolled devices that has said its preface."""
        trust = ssl.create_default_context(cafile=str(self._ca))
        trust.load_cert_chain(self.home.device_certificate, self.home.device_key)
        trust.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("localhost", self.settings.service_port), 5.0)
        one = trust.wrap_socket(plain, server_hostname="localhost")
        one.sendall(H2_PREFACE)
        return one

    def link(self) -> Link:
        """As the agent's."""
        return Link.of_home(self.home)
