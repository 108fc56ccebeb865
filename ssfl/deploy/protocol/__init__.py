"""The messages between the server and its sites, and checks of the payloads in them."""
