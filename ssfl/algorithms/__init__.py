"""Federated methods: the decisions of the server and its clients. Pure; no computation on minibatches."""
