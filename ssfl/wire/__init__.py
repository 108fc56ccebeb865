"""Codecs, coded parts, messages, and the stack of transforms between an algorithm and the network."""
