"""Processes and the network: certificates, gRPC links, the owner, the client, the dealer, and the local launcher."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before grpc is imported: its own log lines say less than our errors
