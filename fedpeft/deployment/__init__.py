"""What coordinator and device say to each other outside the rounds: enrolment, renewal, base, wake-ups.

Messages are the wire codec's; gRPC carries them as bytes (``fedpeft.deployment.rpc``, the only importer of grpc
here). The coordinator's half is ``fedpeft_server.service.grpc_service``, the device's
``fedpeft_client.connection.grpc_client``.
"""
