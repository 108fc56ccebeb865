"""A link of a given rate and delay between network namespaces, and what is sent over it."""
