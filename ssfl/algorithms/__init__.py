"""Methods: what a server and its clients decide. Pure; nothing here computes a minibatch."""
