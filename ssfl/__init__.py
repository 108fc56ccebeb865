"""Salient Sparse Federated Learning: one sparse subnetwork, found at initialisation, for all clients."""

__version__ = "0.1.0"
